"""OHEM, Dice and Lovász against definitions that share no code with them."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from atrousx import models
from atrousx.training import dice_loss, lovasz_loss, ohem_loss
from atrousx.training.losses import criterion_of

IGNORED = 255


def case(classes=3):
    logits = torch.randn(2, classes, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(classes - 1, (2, 7, 9))  # the last class does not occur
    target[0, :2] = IGNORED
    return logits, target


def pixels(logits, target):
    full = F.interpolate(logits, target.shape[1:], mode="bilinear")
    labelled = target != IGNORED
    return full.softmax(1).movedim(1, -1)[labelled], target[labelled]


def test_dice_by_definition():
    logits, target = case()
    found, labels = pixels(logits, target)
    terms = []
    for label in labels.unique().tolist():
        truth = (labels == label).double()
        terms.append(1 - 2 * (found[:, label] * truth).sum() / (found[:, label] + truth).sum())
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(dice_loss(logits, target).double(), expected, atol=1e-6, rtol=1e-6)


def test_lovasz_is_the_iou_at_the_corners():
    """At probabilities 0 and 1 the extension equals the mean of 1 - IoU, for every labelling."""
    truth = torch.tensor([[[0, 0, 1, 1]]])
    for wrong in itertools.product((0, 1), repeat=4):
        found = torch.tensor([[wrong]])
        logits = 200 * F.one_hot(found, 2).movedim(-1, 1).float()
        ious = [
            ((found == label) & (truth == label)).sum()
            / ((found == label) | (truth == label)).sum()
            for label in (0, 1)
        ]
        expected = 1 - sum(ious) / 2
        torch.testing.assert_close(lovasz_loss(logits, truth), expected.float())


def test_lovasz_is_convex_between_corners():
    logits, target = case()
    other = torch.randn_like(logits)
    # Convex in the errors, which are linear in the probabilities: test with two classes' worth of
    # probabilities given directly.
    first, labels = pixels(logits, target)
    second, _ = pixels(other, target)
    as_logits = [p.clamp_min(1e-30).log().T[None, :, None] for p in (first, second)]
    middle = ((first + second) / 2).clamp_min(1e-30).log().T[None, :, None]
    a, b, m = (lovasz_loss(z, labels[None, None]) for z in (*as_logits, middle))
    assert m <= (a + b) / 2 + 1e-6


def test_ohem_keeps_the_hard_pixels():
    logits, target = case()
    found, labels = pixels(logits, target)
    right = found.gather(1, labels[:, None])[:, 0]
    hard = right < 0.3
    assert 0 < hard.sum() < len(hard)
    expected = -right[hard].log().mean()
    torch.testing.assert_close(ohem_loss(logits, target, easy=0.3, least=0.01), expected)


def test_ohem_keeps_a_least_share():
    logits, target = case()
    found, labels = pixels(logits, target)
    losses = -found.gather(1, labels[:, None])[:, 0].log()
    wanted = int(0.5 * len(losses))
    expected = losses.topk(wanted).values.mean()
    torch.testing.assert_close(ohem_loss(logits, target, easy=0.0, least=0.5), expected)


def test_ohem_with_class_weights():
    logits, target = case()
    weight = torch.tensor([3.0, 1.0, 1.0])
    found, labels = pixels(logits, target)
    right = found.gather(1, labels[:, None])[:, 0]
    hard = right < 0.3
    expected = (-right.log() * weight.double()[labels])[hard].mean()
    actual = ohem_loss(logits, target, weight, easy=0.3, least=0.01)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss", [dice_loss, lovasz_loss, ohem_loss])
def test_without_labelled_pixels_the_loss_is_zero(loss):
    logits, target = case()
    value = loss(logits, torch.full_like(target, IGNORED))
    assert value == 0
    value.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", [dice_loss, lovasz_loss, ohem_loss])
def test_the_gradient_lowers_the_loss(loss):
    logits, target = case()
    before = loss(logits, target)
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss((logits - 1e-3 * gradient / gradient.norm()).detach(), target) < before


@pytest.mark.parametrize("name", ["ohem", "dice", "lovasz"])
def test_a_model_takes_it_as_criterion(name):
    model = models.deeplab_v1(3, width=0.05)
    criterion = criterion_of(name, None, IGNORED, model.align_corners)
    target = torch.randint(3, (1, 33, 33), dtype=torch.uint8)
    loss = model(torch.randn(1, 3, 33, 33), target, criterion=criterion)
    loss.backward()
    assert model.classifier[-1].weight.grad.abs().max() > 0
    assert criterion_of("cross_entropy", None, IGNORED, False) is None
