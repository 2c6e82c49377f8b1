"""Shared cases of the tests of DenseCRF."""

from __future__ import annotations

import torch

SIGMAS = {
    "bilateral_sigma_xy": (5.3, 4.1),
    "bilateral_sigma_rgb": (31.0, 20.0, 45.0),
    "gaussian_sigma_xy": (3.1, 2.3),
}


def random_case(size=(4, 5), labels=3, batch=1, dtype=torch.float64, device="cpu"):
    logits = torch.randn(batch, labels, *size, dtype=dtype, device=device)
    image = torch.randint(256, (batch, 3, *size), device=device)
    return logits, image
