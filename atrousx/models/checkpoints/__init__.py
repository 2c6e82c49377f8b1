"""Reads published weights: file formats, layouts of keys, and the networks they belong to."""

from .from_vgg16 import from_vgg16
from .load import from_weights, load_weights
from .report import LoadReport
from .save import save_weights

__all__ = ["LoadReport", "from_vgg16", "from_weights", "load_weights", "save_weights"]
