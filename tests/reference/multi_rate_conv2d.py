"""Convolutions of one input at several dilations by their definition, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reference import atrous_conv2d

Array = NDArray[np.float64]


def forward(
    input: Array,
    weights: Sequence[Array],
    biases: Sequence[Array] | None,
    dilations: Sequence[int],
    reduce: str,
) -> Array:
    branches = []
    for index, (weight, dilation) in enumerate(zip(weights, dilations, strict=True)):
        rows, columns = (dilation * (taps // 2) for taps in weight.shape[2:])
        bias = None if biases is None else biases[index]
        geometry = ((1, 1), (rows, columns, rows, columns), (dilation, dilation), 1)
        branches.append(atrous_conv2d.forward(input, weight, bias, *geometry))
    return np.concatenate(branches, 1) if reduce == "cat" else np.sum(branches, 0)


def backward(
    grad_output: Array,
    input: Array,
    weights: Sequence[Array],
    dilations: Sequence[int],
    reduce: str,
) -> list[Array]:
    """Returns the gradients of the input, of each weight, and of each bias."""
    grad_input = np.zeros(input.shape)
    grad_weights, grad_biases = [], []
    first = 0
    for weight, dilation in zip(weights, dilations, strict=True):
        last = first + len(weight)
        grad = grad_output if reduce == "sum" else grad_output[:, first:last]
        first = last
        rows, columns = (dilation * (taps // 2) for taps in weight.shape[2:])
        geometry = ((1, 1), (rows, columns, rows, columns), (dilation, dilation), 1)
        size, taps = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
        grad_input += atrous_conv2d.backward_input(grad, weight, size, *geometry)
        grad_weights.append(atrous_conv2d.backward_weight(grad, input, taps, *geometry))
        grad_biases.append(grad.sum((0, 2, 3)))
    return [grad_input, *grad_weights, *grad_biases]
