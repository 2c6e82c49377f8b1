"""Rewrites networks for inference: fuses convolutions with later layers and packs weights."""

from .optimize import optimize

__all__ = ["optimize"]
