"""How well labels agree with the truth."""

from .confusion import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
