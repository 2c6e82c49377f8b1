"""Any classifier at a smaller output stride."""

from .to_dense import to_dense

__all__ = ["to_dense"]
