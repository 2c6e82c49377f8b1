"""DeepLab assembled on the operators, and the weights people have for it."""

from .confusion import ConfusionMatrix
from .deeplab_v1 import DeepLabV1, deeplab_v1
from .deeplab_v2 import DeepLabV2, deeplab_v2
from .deeplab_v3 import DeepLabV3, deeplab_v3
from .dense import to_dense
from .export import to_torch
from .freezing import freeze_bn
from .from_vgg16 import from_vgg16
from .looks import Prediction
from .output_stride import set_output_stride
from .preprocess import Preprocess
from .weights import LoadReport, from_weights, load_weights

__all__ = [
    "ConfusionMatrix",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "LoadReport",
    "Prediction",
    "Preprocess",
    "deeplab_v1",
    "deeplab_v2",
    "deeplab_v3",
    "freeze_bn",
    "from_vgg16",
    "from_weights",
    "load_weights",
    "set_output_stride",
    "to_dense",
    "to_torch",
]
