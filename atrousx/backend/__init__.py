"""Who computes a convolution: atrousx's kernels or PyTorch's own."""

from .choice import get_backend, set_backend

__all__ = ["get_backend", "set_backend"]
