"""Chooses between atrousx's kernels and PyTorch's convolution."""

from .choice import get_backend, set_backend
from .state import broadcast, load_state_dict, state_dict

__all__ = ["broadcast", "get_backend", "load_state_dict", "set_backend", "state_dict"]
