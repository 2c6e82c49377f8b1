"""Measures how well labels agree with the true labels."""

from .boundary import BoundaryIoU
from .confusion import ConfusionMatrix
from .evaluation import Evaluation, Labels, evaluate
from .measures import Measures
from .trimap import Trimap

__all__ = [
    "BoundaryIoU",
    "ConfusionMatrix",
    "Evaluation",
    "Labels",
    "Measures",
    "Trimap",
    "evaluate",
]
