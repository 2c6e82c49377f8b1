"""Parameter groups for optimizers, with the learning rates that the papers used."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from torch import nn

from .heads import last_layers


class Multipliers(NamedTuple):
    """Learning rate, weight decay, and the factors of some parameters' learning rates.

    Attributes:
        lr: the learning rate.
        weight_decay: the weight decay.
        head: factor for the layers that make the logits.
        bias: factor for the biases of convolutions.
        aux: factor for the auxiliary classifier.
        decay_all: whether biases and the parameters of normalisation decay as well.
    """

    lr: float
    weight_decay: float
    head: float = 1.0
    bias: float = 1.0
    aux: float = 1.0
    decay_all: bool = True


def parameter_groups(model: nn.Module, multipliers: Multipliers) -> list[dict[str, Any]]:
    """Returns the groups in order of their learning rate, without frozen parameters."""
    heads = set(last_layers(model))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, module in model.named_modules():
        in_aux = name.partition(".")[0] == "aux_classifier"
        factor = multipliers.aux if in_aux else multipliers.head if name in heads else 1.0
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_filter = parameter.dim() > 1
            is_bias = key == "bias" and isinstance(module, nn.Conv2d)
            lr = multipliers.lr * factor * (multipliers.bias if is_bias else 1.0)
            groups[lr, is_filter or multipliers.decay_all].append(parameter)
    return [
        {
            "params": groups[lr, decays],
            "lr": lr,
            "weight_decay": multipliers.weight_decay if decays else 0.0,
        }
        for lr, decays in sorted(groups, key=lambda group: (group[0], not group[1]))
    ]
