"""atrousx: hand-written kernels for dilated convolution, bilinear upsampling and the dense CRF."""

from . import models, ops
from .nn import ASPP, AtrousConv2d, BilinearUpsample2d, DenseCRF, replace_convs

__version__ = "0.1.0"
__all__ = [
    "ASPP",
    "AtrousConv2d",
    "BilinearUpsample2d",
    "DenseCRF",
    "models",
    "ops",
    "replace_convs",
]
