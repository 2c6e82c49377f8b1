"""Shared parts of the measuring tests: a small convolution, a training step, a planted fault."""

from __future__ import annotations

import torch

from atrousx.backend import measure as measuring
from atrousx.backend import passes
from atrousx.backend.geometry import FORWARD, FUSED, GRAD_INPUT, GRAD_WEIGHT
from atrousx.ops import atrous_conv2d


def operands(size=9, dtype=torch.float32, channels=4):
    x = torch.randn(2, channels, size, size, dtype=dtype, requires_grad=True)
    w = torch.randn(6, channels // 2, 3, 3, dtype=dtype, requires_grad=True)
    b = torch.randn(6, dtype=dtype, requires_grad=True)
    return x, w, b


def convolve(x, w, b=None, **options):
    return atrous_conv2d(x, w, b, padding=2, dilation=2, groups=2, **options)


def choices():
    return {geometry.pass_: choice for geometry, choice in measuring.table}


def step(x, w, b=None):
    y = convolve(x, w, b)
    return (y, *torch.autograd.grad(y.square().sum(), [t for t in (x, w, b) if t is not None]))


def plant(monkeypatch, pass_, fault=lambda result: result + 1):
    """Makes the kernel of one pass wrong."""
    name = {
        FORWARD: "_forward",
        FUSED: "_fused",
        GRAD_INPUT: "_backward_input",
        GRAD_WEIGHT: "_backward_weight",
    }[pass_]
    right = getattr(passes, name)
    monkeypatch.setattr(passes, name, lambda *args: fault(right(*args)))
