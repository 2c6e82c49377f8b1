"""Measures how well labels agree with the true labels."""

from .confusion import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
