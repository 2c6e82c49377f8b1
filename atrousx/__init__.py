"""atrousx: hand-written kernels for dilated convolution, bilinear upsampling and the dense CRF."""

from . import ops

__version__ = "0.1.0"
__all__ = ["ops"]
