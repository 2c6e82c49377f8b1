"""Builds and pretrains the networks of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from atrousx import AtrousConv2d
from atrousx.models.segmenter import Segmenter
from atrousx.nn import ASPP
from atrousx.training import Recipe, build_network

from .tables import Variant


def network(
    variant: Variant,
    recipe: Recipe,
    num_classes: int,
    backbone: Mapping[str, Tensor] | None,
) -> Segmenter:
    """Returns a variant's network before its training."""
    model, _ = build_network(recipe, num_classes)
    if variant.recipe.backbone == "vgg16":
        normalise(model)
    if backbone is not None:
        model.get_submodule("backbone").load_state_dict(backbone)
    divide_rates(model, variant.rate_divisor)
    if not variant.image_pooling:
        leave_out_image_pooling(model)
    return model


def divide_rates(model: Segmenter, divisor: int) -> None:
    """Divides the atrous rates of the head; maps keep their size."""
    for layer in model.get_submodule("classifier").modules():
        if isinstance(layer, AtrousConv2d) and layer.dilation[0] > 1:
            # Rates and paddings are squares.
            rate, edge = layer.dilation[0] // divisor, int(layer.padding[0]) // divisor
            layer.dilation, layer.padding = (rate, rate), (edge, edge)


def leave_out_image_pooling(model: Segmenter) -> None:
    """Makes the image pooling of ASPP return zeros, to which the projection adds nothing."""
    for layer in model.get_submodule("classifier").modules():
        if isinstance(layer, ASPP):
            layer.convs[-1].register_forward_hook(lambda _, __, result: torch.zeros_like(result))


def normalise(model: Segmenter) -> None:
    """Adds a batch normalisation between each convolution and its ReLU.

    VGG-16 has none. Without, random filters hardly begin to learn, and the papers' ImageNet is not
    at hand.
    """
    for layers in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for (name, layer), (_, after) in pairwise(list(layers.named_children())):
            if isinstance(layer, AtrousConv2d) and isinstance(after, nn.ReLU):
                setattr(layers, name, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))


def pretraining_network(recipe: Recipe, num_classes: int) -> Segmenter:
    """Returns VGG-16 with a small head that has image pooling.

    With it the backbone learns what is far away, too, and no form of fc6 has seen anything before.
    """
    model, _ = build_network(recipe, num_classes)
    convs = [m for m in model.get_submodule("backbone").modules() if isinstance(m, AtrousConv2d)]
    channels = convs[-1].out_channels
    model.classifier = nn.Sequential(
        ASPP(channels, (1,), 2 * channels, dropout=0.0), AtrousConv2d(2 * channels, num_classes, 1)
    )
    normalise(model)
    return model
