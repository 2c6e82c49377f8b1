"""atrousx: hand-written kernels for dilated convolution, bilinear upsampling and the dense CRF."""

from . import models, ops
from .backend.precision import get_precision, set_precision
from .nn import ASPP, AtrousConv2d, BilinearUpsample2d, DenseCRF, optimize, replace_convs
from .ops._backend import get_backend, set_backend

__version__ = "0.1.0"
__all__ = [
    "ASPP",
    "AtrousConv2d",
    "BilinearUpsample2d",
    "DenseCRF",
    "get_backend",
    "get_precision",
    "models",
    "ops",
    "optimize",
    "replace_convs",
    "set_backend",
    "set_precision",
]
