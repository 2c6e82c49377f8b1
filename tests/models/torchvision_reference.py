"""torchvision's models as the reference, and random weights that both libraries can load."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn


def has_operators(torchvision_file: str) -> bool:
    """Whether torchvision's compiled operators load into this PyTorch."""
    for library in Path(torchvision_file).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return True
    return False


@cache
def segmentation() -> ModuleType:
    """Returns ``torchvision.models.segmentation``. Skips the test if torchvision is not installed.

    Each torchvision wheel is compiled for one build of PyTorch. With another build the import fails
    on two operators that no model here calls. To define their names is enough.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        pytest.skip("torchvision is not installed")
    if not has_operators(found.origin):
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torchvision.models.segmentation")


def deeplab(backbone: str, aux: bool = True) -> nn.Module:
    build = getattr(segmentation(), f"deeplabv3_{backbone}")
    model: nn.Module = build(weights=None, weights_backbone=None, aux_loss=aux)
    return model.eval()


def random_state(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Returns random values for all entries, including the running statistics of normalisation."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in state.items():
        if key.endswith(("running_var", "weight")) and value.dim() == 1:
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.dim() == 1:
            value.normal_(0, 0.5, generator=generator)
        elif value.dim() == 4:
            fan_in = value[0].numel()
            value.normal_(0, fan_in**-0.5, generator=generator)
        else:
            value.fill_(17)
    return state
