"""The two modules of pydensecrf, ``densecrf`` and ``utils``, built on atrousx's dense CRF.

A script for pydensecrf runs if only its imports are changed:

>>> import atrousx.compat.pydensecrf.densecrf as dcrf
>>> from atrousx.compat.pydensecrf.utils import unary_from_labels
"""
