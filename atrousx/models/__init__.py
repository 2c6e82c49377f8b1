"""DeepLab assembled on the operators, and the weights people have for it."""

from .deeplab_v3 import DeepLabV3, deeplab_v3
from .weights import LoadReport, load_weights

__all__ = ["DeepLabV3", "LoadReport", "deeplab_v3", "load_weights"]
