"""Finds the model that weights belong to, as far as their keys and shapes show it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ..deeplab_v1 import FC6, deeplab_v1
from ..deeplab_v2 import BACKBONES, RATES, deeplab_v2
from ..deeplab_v3 import deeplab_v3
from ..resnet import UNITS
from ..segmenter import Segmenter
from .layouts import Weights, recognise, renamed

Arguments = dict[str, object]
BUILDERS: dict[str, Callable[..., Segmenter]] = {
    "v1": deeplab_v1,
    "v2": deeplab_v2,
    "v3": deeplab_v3,
}


class Architecture(NamedTuple):
    """A builder, and the arguments of it that weights determine.

    Weights do not contain strides, atrous rates and poolings. Two models that differ only in these
    are one architecture here.

    Attributes:
        version: "v1", "v2" or "v3".
        arguments: arguments for the builder.
        choice: the name of an argument that may still have several values, and these values.
    """

    version: str
    arguments: Arguments
    choice: tuple[str, tuple[str, ...]] | None = None

    def __str__(self) -> str:
        told = [f"{name}={value!r}" for name, value in self.arguments.items()]
        if self.choice is not None:
            name, values = self.choice
            told.append(f"{name}={' or '.join(map(repr, values))}")
        return f"deeplab_{self.version}({', '.join(told)})"

    def for_any_classes(self) -> Architecture:
        return self._replace(arguments=self.arguments | {"num_classes": None})


def architecture_of(weights: Weights) -> Architecture | None:
    """Returns the architecture of weights in any known layout, or None if no builder makes it."""
    layout = recognise(weights)
    version = "" if layout is None else layout.name.removeprefix("deeplab_")[:2]
    if layout is None or version not in READERS:
        return None
    return READERS[version](renamed(weights, layout))


def _v1(weights: Weights) -> Architecture | None:
    first = _shape(weights, "classifier.0.weight")
    fitting = [name for name, fc6 in FC6.items() if (fc6.width, fc6.kernel) == first[::3]]
    arguments: Arguments = {"num_classes": _shape(weights, "classifier.6.weight")[0]}
    if any(key.startswith("multi_scale.") for key in weights):
        arguments["multi_scale_features"] = True
    return _decided("v1", arguments, "fc6", fitting)


def _v2(weights: Weights) -> Architecture | None:
    backbone = "vgg16" if "backbone.features.0.weight" in weights else _resnet(weights)
    if backbone not in BACKBONES:
        return None
    last = f"classifier.branches.%d{'.6' if backbone == 'vgg16' else ''}.weight"
    count = sum(last % index in weights for index in range(max(map(len, RATES.values()))))
    fitting = [name for name, rates in RATES.items() if len(rates) == count]
    arguments: Arguments = {"num_classes": _shape(weights, last % 0)[0], "backbone": backbone}
    return _decided("v2", arguments, "head", fitting)


def _v3(weights: Weights) -> Architecture | None:
    backbone = _resnet(weights)
    layers = [key for key in weights if re.fullmatch(r"classifier\.\d\.weight", key)]
    if backbone is None or not layers:
        return None
    last = max(layers)
    arguments: Arguments = {"num_classes": _shape(weights, last)[0], "backbone": backbone}
    arguments["layout"] = "torchvision" if last == "classifier.4.weight" else "paper"
    if last == "classifier.0.weight":
        arguments |= {"head": "cascade", "blocks": len(_units(weights))}
    return Architecture("v3", arguments)


def _decided(
    version: str, arguments: Arguments, name: str, fitting: list[str]
) -> Architecture | None:
    """Returns the architecture with the one fitting value of an argument, or a choice of several.

    None if no value fits.
    """
    if len(fitting) == 1:
        return Architecture(version, arguments | {name: fitting[0]})
    return Architecture(version, arguments, (name, tuple(fitting))) if fitting else None


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    """Returns the shape of a convolution's weight; four zeros if there is none."""
    value = weights.get(key)
    return tuple(value.shape) if value is not None and value.dim() == 4 else (0, 0, 0, 0)


def _resnet(weights: Weights) -> str | None:
    units = _units(weights)
    return next((name for name, count in UNITS.items() if units[: len(count)] == count), None)


def _units(weights: Weights) -> tuple[int, ...]:
    """Returns the number of units of each stage of a ResNet."""
    found = (re.match(r"backbone\.layer(\d+)\.(\d+)\.", key) for key in weights)
    units = {(int(match[1]), int(match[2])) for match in found if match}
    stages = sorted({stage for stage, _ in units})
    return tuple(sum(stage == wanted for stage, _ in units) for wanted in stages)


READERS: dict[str, Callable[[Weights], Architecture | None]] = {
    "v1": _v1,
    "v2": _v2,
    "v3": _v3,
}
