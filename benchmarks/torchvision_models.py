"""torchvision's DeepLab v3 with the weights of atrousx's, for the benchmarks of whole networks."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch
from torch import nn


def segmentation() -> ModuleType | None:
    """Returns ``torchvision.models.segmentation``, or None if torchvision is not installed.

    Each torchvision wheel is compiled for one build of PyTorch. With another build the import fails
    on two operators that no model here calls. To define their names is enough.
    """
    name = "torchvision.models.segmentation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None
        except RuntimeError:
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", schema)
            return importlib.import_module(name)


def twin(model: nn.Module, backbone: str, aux: bool = False) -> nn.Module | None:
    """Returns torchvision's network with copies of a model's parameters and buffers.

    torchvision has no narrow networks. So its full network gets the parameters one by one, whatever
    their shapes are: its layers take their numbers of channels from the weights when they compute.
    """
    found = segmentation()
    if found is None:
        return None
    build = getattr(found, f"deeplabv3_{backbone}")
    with torch.device("meta"):
        result: nn.Module = build(weights=None, weights_backbone=None, aux_loss=aux)
    state = model.state_dict()
    if different := state.keys() ^ result.state_dict().keys():
        raise ValueError(
            f"torchvision's deeplabv3_{backbone} has other parameters than this network, for "
            f"example {min(different)}; networks narrower than a width of 0.1 may differ"
        )
    for key, value in state.items():
        owner, _, name = key.rpartition(".")
        module, copy = result.get_submodule(owner), value.clone()
        setattr(module, name, nn.Parameter(copy) if name in module._parameters else copy)
    return result
