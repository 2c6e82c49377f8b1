"""Networks rewritten for inference: convolutions fused with what follows them, weights packed."""

from .optimize import optimize

__all__ = ["optimize"]
