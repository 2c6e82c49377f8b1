"""The operators as functions; each module contains all Python code of one operator."""

from . import _self_checks  # noqa: F401  (registers the self-checks of the operators)
from ._geometry import live_fraction
from .atrous_conv2d import atrous_conv2d
from .multi_rate_conv2d import multi_rate_conv2d
from .permutohedral_filter import PermutohedralLattice, permutohedral_filter
from .upsample_argmax import upsample_argmax
from .upsample_bilinear2d import upsample_bilinear2d
from .upsample_cross_entropy import upsample_cross_entropy
from .upsample_softmax_add import upsample_softmax_add_

__all__ = [
    "PermutohedralLattice",
    "atrous_conv2d",
    "live_fraction",
    "multi_rate_conv2d",
    "permutohedral_filter",
    "upsample_argmax",
    "upsample_bilinear2d",
    "upsample_cross_entropy",
    "upsample_softmax_add_",
]
