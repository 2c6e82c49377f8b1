"""Checks of label maps that the measures share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ops._check import check_tensor


class Pair(NamedTuple):
    """Labels of the pixels that count, ``[pixels]`` int64."""

    predicted: Tensor
    true: Tensor


def check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def check_label_maps(predicted: Tensor, true: Tensor) -> None:
    """Raises an error unless both are integers of one shape on one device."""
    for name, labels in (("predicted", predicted), ("true", true)):
        check_tensor(name, labels)
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{name} must be integers, got {str(labels.dtype)[6:]}")
    if predicted.shape != true.shape:
        raise ValueError(
            f"predicted and true must have the same shape, got {tuple(predicted.shape)} and "
            f"{tuple(true.shape)}"
        )
    if predicted.device != true.device:
        raise RuntimeError(
            f"predicted must be on the device of true, {true.device}, got {predicted.device}"
        )


def counted(predicted: Tensor, true: Tensor, num_classes: int) -> Pair:
    """Returns the labels as int64. Raises ValueError if one is outside 0..num_classes-1."""
    pair = Pair(predicted.long(), true.long())
    for name, labels in (("true", pair.true), ("predicted", pair.predicted)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"{name} must hold labels from 0 to {num_classes - 1}, "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
    return pair


def check_image(labels: Tensor) -> None:
    """Raises ValueError unless the labels are those of one image."""
    if labels.dim() != 2:
        raise ValueError(f"labels must be [H, W], of one image, got {tuple(labels.shape)}")
