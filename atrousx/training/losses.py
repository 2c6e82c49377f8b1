"""Losses beside the cross-entropy, for recipes and for ``criterion`` of a model's ``loss``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.loss import Criterion
from ..ops import upsample_bilinear2d, upsample_cross_entropy

# Public implementations of online hard example mining take these two numbers.
EASY = 0.7
LEAST = 1 / 16


def ohem_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    easy: float = EASY,
    least: float = LEAST,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    r"""Returns the cross-entropy of the hardest pixels only (online hard example mining).

    A pixel counts if the network gives its true class a probability below ``easy``. At least the
    share ``least`` of the labelled pixels with the largest loss counts.

    Args:
        logits: ``[N, C, H, W]``.
        target: labels ``[N, OH, OW]``.
        weight: ``[C]``, a factor for each class.
        easy: the probability from which a pixel is easy.
        least: share of the pixels that counts at least.
        ignore_index: the label of pixels that do not count.
        align_corners: as in ``ops.upsample_cross_entropy``.

    Returns:
        A scalar: the mean over the pixels that count; 0 without labelled pixels.

    Raises:
        TypeError, ValueError: as in ``ops.upsample_cross_entropy``.

    Source: arXiv:1604.03540, for the pixels of an image.

    Example:
        >>> import torch
        >>> from atrousx.training import ohem_loss
        >>> ohem_loss(torch.zeros(1, 2, 3, 3), torch.ones(1, 9, 9, dtype=torch.int64))
        tensor(0.6931)
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "align_corners": align_corners}
    losses = upsample_cross_entropy(logits, target, weight, reduction="none", **options)
    labelled = target != ignore_index
    with torch.no_grad():
        # The probability of the true class, whatever the weight of the class is.
        plain = losses.detach()
        if weight is not None:
            plain = upsample_cross_entropy(logits.detach(), target, reduction="none", **options)
        hard = labelled & ((-plain).exp() < easy)
        wanted = int(least * int(labelled.sum()))
        if int(hard.sum()) < wanted:
            limit = plain[labelled].topk(wanted).values[-1]
            hard = labelled & (plain >= limit)
    return losses[hard].sum() / hard.sum().clamp_min(1)


def dice_loss(
    logits: Tensor, target: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    r"""Returns the mean Dice loss of the classes that occur in the batch.

    .. math:: L = 1 - \mathrm{mean}_c \frac{2 \sum_i p_{i,c} t_{i,c}}{\sum_i p_{i,c} + t_{i,c}}

    The sums are over all labelled pixels of the batch; :math:`t` is 1 at the true class, else 0.

    Args:
        logits: ``[N, C, H, W]``.
        target: labels ``[N, OH, OW]``. The logits are upsampled to this size.
        ignore_index: the label of pixels that do not count.
        align_corners: as in ``ops.upsample_bilinear2d``.

    Returns:
        A scalar; 0 without labelled pixels.

    Raises:
        TypeError, ValueError: as in ``ops.upsample_bilinear2d``.

    Source: arXiv:1606.04797.

    Example:
        >>> import torch
        >>> from atrousx.training import dice_loss
        >>> logits = torch.tensor([[[[99.0]], [[0.0]]]])
        >>> dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
        tensor(0.)
    """
    probabilities, truth = _labelled_pixels(logits, target, ignore_index, align_corners)
    overlap = 2 * (probabilities * truth).sum(0)
    sizes = probabilities.sum(0) + truth.sum(0)
    present = truth.sum(0) > 0
    scores = overlap / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return ((1 - scores) * present).sum() / present.sum().clamp_min(1)


def lovasz_loss(
    logits: Tensor, target: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    r"""Returns the Lovász-softmax loss of the classes that occur in the batch.

    It is the convex extension of the Jaccard loss 1 - IoU. For each class the errors
    :math:`|t_i - p_i|` are sorted in descending order and multiplied by the increase of the Jaccard
    loss that each pixel brings.

    Args:
        logits: ``[N, C, H, W]``.
        target: labels ``[N, OH, OW]``. The logits are upsampled to this size.
        ignore_index: the label of pixels that do not count.
        align_corners: as in ``ops.upsample_bilinear2d``.

    Returns:
        A scalar; 0 without labelled pixels.

    Raises:
        TypeError, ValueError: as in ``ops.upsample_bilinear2d``.

    Source: arXiv:1705.08790, algorithm 1.

    Example:
        >>> import torch
        >>> from atrousx.training import lovasz_loss
        >>> logits = torch.tensor([[[[0.0]], [[99.0]]]])
        >>> lovasz_loss(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
        tensor(1.)
    """
    probabilities, truth = _labelled_pixels(logits, target, ignore_index, align_corners)
    terms = [
        torch.dot(*_errors_and_increases(probabilities[:, label], truth[:, label]))
        for label in truth.sum(0).nonzero().flatten().tolist()
    ]
    return torch.stack(terms).mean() if terms else probabilities.sum() * 0


def _errors_and_increases(probabilities: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the errors of one class in descending order, and what each adds to 1 - IoU."""
    errors, order = (truth - probabilities).abs().sort(descending=True, stable=True)
    right = truth[order]
    intersection = right.sum() - right.cumsum(0)
    union = right.sum() + (1 - right).cumsum(0)
    losses = 1 - intersection / union
    return errors, torch.diff(losses, prepend=losses.new_zeros(1))


def _labelled_pixels(
    logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Returns the probabilities and the truth of all labelled pixels, both ``[pixels, C]``."""
    size = (target.shape[-2], target.shape[-1])
    probabilities = upsample_bilinear2d(logits.float(), size, align_corners=align_corners).softmax(
        1
    )
    labelled = target != ignore_index
    found = probabilities.movedim(1, -1)[labelled]
    return found, F.one_hot(target[labelled].long(), logits.shape[1]).to(found.dtype)


def criterion_of(
    loss: str, weight: Tensor | None, ignore_index: int, align_corners: bool
) -> Criterion | None:
    """Returns the criterion of a recipe's loss; None for the cross-entropy."""
    if loss == "cross_entropy":
        return None
    kinds: dict[str, Callable[..., Tensor]] = {
        "ohem": partial(ohem_loss, weight=weight),
        "dice": dice_loss,
        "lovasz": lovasz_loss,
    }
    return partial(kinds[loss], ignore_index=ignore_index, align_corners=align_corners)
