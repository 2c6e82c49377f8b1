"""Who computes a convolution, and how exactly."""
