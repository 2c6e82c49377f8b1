"""Builds the network of a recipe, with the weights that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models import LoadReport, freeze_bn, load_weights
from ..models.backbones.mobilenet_v2 import InvertedResidual
from ..models.backbones.resnet import Bottleneck
from ..models.backbones.xception import XceptionUnit
from ..models.checkpoints.architecture import BUILDERS
from ..models.segmenter import Segmenter
from .recipe import Recipe


def builder_arguments(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """Returns the arguments of the model's builder; what the recipe leaves open is not in it."""
    given: dict[str, Any] = {"num_classes": num_classes, "width": recipe.width}
    if recipe.model == "v1":
        given |= {"fc6": recipe.head, "multi_scale_features": recipe.multi_scale}
    elif recipe.model == "v2":
        given |= {"backbone": recipe.backbone, "head": recipe.head}
        given["multi_scale"] = recipe.multi_scale
    else:
        given |= {"backbone": recipe.backbone, "layout": recipe.layout}
        given |= {"head": recipe.head} if recipe.model == "v3" else {}
        given |= {"output_stride": recipe.output_stride, "multi_grid": recipe.multi_grid}
        given["aux"] = recipe.aux
    return {name: value for name, value in given.items() if value is not None}


def build_network(
    recipe: Recipe, num_classes: int, weights: str | Path | Mapping[str, Tensor] | None = None
) -> tuple[Segmenter, LoadReport | None]:
    """Returns the network that a recipe trains, and what was loaded.

    Random weights depend on the recipe's seed alone. With them residual units start as the
    identity (arXiv:1706.02677 section 5.1), else a deep network hardly learns at first. A last
    layer for another number of classes in the file is left out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = BUILDERS[recipe.model](**builder_arguments(recipe, num_classes))
    report = None
    if weights is not None:
        report = load_weights(model, weights, other_classes=True)
    elif not recipe.freeze_bn:
        _start_as_identity(model)
    set_normalisation(model, recipe)
    return model, report


def _start_as_identity(model: nn.Module) -> None:
    """Makes the last normalisation of each residual unit return 0."""
    for module in model.modules():
        last = None
        if isinstance(module, Bottleneck):
            last = module.bn3
        elif isinstance(module, (XceptionUnit, InvertedResidual)) and module.adds:
            last = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)][-1]
        if last is not None:
            nn.init.zeros_(last.weight)


def set_normalisation(model: nn.Module, recipe: Recipe) -> None:
    """Freezes batch normalisation, or sets the share of a batch in its running statistics."""
    if recipe.freeze_bn:
        freeze_bn(model)
    if recipe.bn_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.bn_momentum
