"""The operators as functions; each page holds one operator's whole Python life."""

from .upsample_bilinear2d import upsample_bilinear2d

__all__ = ["upsample_bilinear2d"]
