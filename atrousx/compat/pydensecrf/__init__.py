"""pydensecrf's two modules, ``densecrf`` and ``utils``, over atrousx's dense CRF.

A script written for pydensecrf runs after its imports are changed:

>>> import atrousx.compat.pydensecrf.densecrf as dcrf
>>> from atrousx.compat.pydensecrf.utils import unary_from_labels
"""
