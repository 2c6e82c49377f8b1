"""atrousx: CPU and CUDA kernels for dilated convolution, bilinear upsampling and the dense CRF."""

from . import backend, metrics, models, ops
from ._version import __version__
from .backend import get_backend, set_backend
from .backend.explain import explain
from .backend.precision import get_precision, set_precision
from .inference import optimize
from .nn import ASPP, AtrousConv2d, BilinearUpsample2d, DenseCRF, replace_convs

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "BilinearUpsample2d",
    "DenseCRF",
    "__version__",
    "backend",
    "explain",
    "get_backend",
    "get_precision",
    "metrics",
    "models",
    "ops",
    "optimize",
    "replace_convs",
    "set_backend",
    "set_precision",
]
