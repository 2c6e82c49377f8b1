"""Finds the model that weights belong to, as far as their keys and shapes show it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..backbones.mobilenet_v2 import STAGES as MOBILE_STAGES
from ..backbones.resnet import STAGE_WIDTHS, UNITS
from ..backbones.vgg import STAGES
from ..backbones.xception import FORMS
from ..deeplab_v1 import FC6, deeplab_v1
from ..deeplab_v2 import BACKBONES, FC6_WIDTH, RATES, deeplab_v2
from ..deeplab_v3 import deeplab_v3
from ..deeplab_v3plus import deeplab_v3plus
from ..forms import V3, V3PLUS
from ..segmenter import Segmenter
from ..width import width_of
from .layouts import Weights, recognise, renamed

Arguments = dict[str, object]
BUILDERS: dict[str, Callable[..., Segmenter]] = {
    "v1": deeplab_v1,
    "v2": deeplab_v2,
    "v3": deeplab_v3,
    "v3plus": deeplab_v3plus,
}


# Layouts of v3 with a ResNet that have the same keys and shapes.
SAME_TENSORS = ("torchvision", "vainf", "smp")


class Architecture(NamedTuple):
    """A builder, and the arguments of it that weights determine.

    Weights do not contain strides, atrous rates and poolings. Two models that differ only in these
    are one architecture here.

    Attributes:
        version: "v1", "v2", "v3" or "v3plus".
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
    """Returns the architecture of weights in any known layout, or None if no builder makes it.

    A checkpoint of ``atrousx train`` names it. Keys and shapes tell it of all other weights.
    """
    network = getattr(weights, "network", None)
    if network is not None and network.get("version") in BUILDERS:
        return Architecture(network["version"], dict(network["arguments"]))
    layout = recognise(weights)
    if layout is None or layout.version not in READERS:
        return None
    return READERS[layout.version](renamed(weights, layout), layout.name)


def _v1(weights: Weights, source: str) -> Architecture | None:
    found, _, kernel, _ = _shape(weights, "classifier.0.weight")
    widths = {
        name: _width(weights, (fc6.width, found))
        for name, fc6 in FC6.items()
        if fc6.kernel == kernel
    }
    fitting = [name for name, width in widths.items() if width is not None]
    if not fitting:
        return None
    arguments: Arguments = {"num_classes": _shape(weights, "classifier.6.weight")[0]}
    if any(key.startswith("multi_scale.") for key in weights):
        arguments["multi_scale_features"] = True
    return _decided("v1", arguments, widths[fitting[0]], "fc6", fitting)


def _v2(weights: Weights, source: str) -> Architecture | None:
    backbone = "vgg16" if "backbone.features.0.weight" in weights else _resnet(weights)
    if backbone not in BACKBONES:
        return None
    last = f"classifier.branches.%d{'.6' if backbone == 'vgg16' else ''}.weight"
    count = sum(last % index in weights for index in range(max(map(len, RATES.values()))))
    fitting = [name for name, rates in RATES.items() if len(rates) == count]
    arguments: Arguments = {"num_classes": _shape(weights, last % 0)[0], "backbone": backbone}
    first = _shape(weights, "classifier.branches.0.0.weight")[0]
    width = _width(weights, *([(FC6_WIDTH, first)] if backbone == "vgg16" else []))
    return _decided("v2", arguments, width, "head", fitting)


def _v3(weights: Weights, source: str) -> Architecture | None:
    backbone = _backbone(weights)
    layers = [key for key in weights if re.fullmatch(r"classifier\.\d\.weight", key)]
    if backbone is None or not layers:
        return None
    last = max(layers)
    # "vainf" and "torchvision" with a ResNet differ in dropout alone.
    like_torchvision = "vainf" if backbone == "mobilenet_v2" else "torchvision"
    layouts = {"classifier.4.weight": like_torchvision, "classifier.2.weight": "mmseg"}
    layout = source if source == "smp" else layouts.get(last, "paper")
    arguments: Arguments = {"num_classes": _shape(weights, last)[0], "backbone": backbone}
    arguments["layout"] = layout
    if last == "classifier.0.weight":
        arguments |= {"head": "cascade", "blocks": len(_units(weights))}
        return _decided("v3", arguments, _width(weights))
    projected = _shape(weights, "classifier.0.project.0.weight")[0]
    return _decided("v3", arguments, _width(weights, (V3[layout].channels, projected)))


def _v3plus(weights: Weights, source: str) -> Architecture | None:
    backbone = _backbone(weights)
    last = max(
        (key for key in weights if re.fullmatch(r"classifier\.classifier\.\d\.weight", key)),
        default=None,
    )
    if backbone is None or last is None:
        return None
    layout = _plus_layout(weights)
    separable = _shape(weights, "classifier.aspp.convs.1.0.weight") == (0, 0, 0, 0)
    arguments: Arguments = {"num_classes": _shape(weights, last)[0], "backbone": backbone}
    arguments["layout"] = layout
    if separable != V3PLUS[layout].separable:
        arguments["separable"] = separable
    form, projected = V3PLUS[layout], _shape(weights, "classifier.aspp.project.0.weight")[0]
    return _decided("v3plus", arguments, _width(weights, (form.channels, projected)))


def _plus_layout(weights: Weights) -> str:
    """Returns the only layout of v3+ that has such layers."""
    if "backbone.conv1.0.weight" in weights:
        return "mmseg"
    if any(key.startswith("classifier.refine.") for key in weights):
        return "smp"
    # A second 3x3 convolution in the decoder, which may be separable.
    is_deep = any(key.startswith("classifier.classifier.4.") for key in weights)
    return "paper" if is_deep else "vainf"


def _decided(
    version: str,
    arguments: Arguments,
    width: float | None,
    name: str = "",
    fitting: Sequence[str] = (),
) -> Architecture | None:
    """Returns the architecture with the one fitting value of an argument, or a choice of several.

    None if no width fits, or no value of an argument that the version has.
    """
    if width is None or (name and not fitting):
        return None
    # A builder's width is 1 unless it is told another.
    arguments = arguments if width == 1 else arguments | {"width": width}
    if len(fitting) > 1:
        return Architecture(version, arguments, (name, tuple(fitting)))
    return Architecture(version, arguments | ({name: fitting[0]} if fitting else {}))


def _width(weights: Weights, *layers: tuple[int, int]) -> float | None:
    """Returns the factor for the channels of the backbone and of more layers, None if none fits.

    ``layers`` has their channels at width 1 and in the weights.
    """
    if "backbone.features.0.weight" in weights:
        keys = {"backbone.features.0.weight": STAGES[0][0]}
        keys["backbone.features.28.weight"] = STAGES[-1][-1]
    elif _backbone(weights) == "mobilenet_v2":
        keys = {"backbone.features.17.conv.2.weight": MOBILE_STAGES[-1][1]}
        keys["backbone.features.14.conv.2.weight"] = MOBILE_STAGES[-2][1]
    elif _backbone(weights) in FORMS:
        widths = FORMS["xception65"][0].channels, FORMS["xception65"][3].channels
        keys = {"backbone.blocks.0.stack.conv1.conv_pw.weight": widths[0][0]}
        keys["backbone.blocks.6.stack.conv1.conv_pw.weight"] = widths[1][0]
    else:
        keys = {f"backbone.layer{i}.0.conv2.weight": w for i, w in enumerate(STAGE_WIDTHS, 1)}
    found = [(full, _shape(weights, key)[0]) for key, full in keys.items()]
    return width_of([*found, *layers])


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    """Returns the shape of a convolution's weight; four zeros if there is none."""
    value = weights.get(key)
    return tuple(value.shape) if value is not None and value.dim() == 4 else (0, 0, 0, 0)


def _backbone(weights: Weights) -> str | None:
    if "backbone.features.0.0.weight" in weights:
        return "mobilenet_v2"
    blocks = {key.split(".")[2] for key in weights if key.startswith("backbone.blocks.")}
    by_blocks = {len(units): name for name, units in FORMS.items()}
    return by_blocks.get(len(blocks)) if blocks else _resnet(weights)


def _resnet(weights: Weights) -> str | None:
    units = _units(weights)
    return next((name for name, count in UNITS.items() if units[: len(count)] == count), None)


def _units(weights: Weights) -> tuple[int, ...]:
    """Returns the number of units of each stage of a ResNet."""
    found = (re.match(r"backbone\.layer(\d+)\.(\d+)\.", key) for key in weights)
    units = {(int(match[1]), int(match[2])) for match in found if match}
    stages = sorted({stage for stage, _ in units})
    return tuple(sum(stage == wanted for stage, _ in units) for wanted in stages)


READERS: dict[str, Callable[[Weights, str], Architecture | None]] = {
    "v1": _v1,
    "v2": _v2,
    "v3": _v3,
    "v3plus": _v3plus,
}
