"""DeepLab models built on the operators, and loading of published weights."""

from __future__ import annotations

import warnings
from typing import Any

from ..metrics.confusion import ConfusionMatrix as _ConfusionMatrix
from .checkpoints import LoadReport, from_vgg16, from_weights, load_weights, save_weights
from .deeplab_v1 import DeepLabV1, deeplab_v1
from .deeplab_v2 import DeepLabV2, deeplab_v2
from .deeplab_v3 import DeepLabV3, deeplab_v3
from .deeplab_v3plus import DeepLabV3Plus, deeplab_v3plus
from .dense import to_dense
from .export import to_torch
from .freezing import freeze_bn
from .multi_scale import Prediction
from .output_stride import set_output_stride
from .preprocess import Preprocess
from .recompute import recompute_activations

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "LoadReport",
    "Prediction",
    "Preprocess",
    "deeplab_v1",
    "deeplab_v2",
    "deeplab_v3",
    "deeplab_v3plus",
    "freeze_bn",
    "from_vgg16",
    "from_weights",
    "load_weights",
    "recompute_activations",
    "save_weights",
    "set_output_stride",
    "to_dense",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name == "ConfusionMatrix":
        warnings.warn(
            "atrousx.models.ConfusionMatrix is now atrousx.metrics.ConfusionMatrix",
            DeprecationWarning,
            stacklevel=2,
        )
        return _ConfusionMatrix
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
