"""Layers built on the operators: replacements for PyTorch's layers, and layers of DeepLab."""

from .aspp import ASPP
from .atrous_conv2d import AtrousConv2d
from .bilinear_upsample2d import BilinearUpsample2d
from .dense_crf import DenseCRF
from .replace import replace_convs
from .separable import SeparableConv2d

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "BilinearUpsample2d",
    "DenseCRF",
    "SeparableConv2d",
    "replace_convs",
]
