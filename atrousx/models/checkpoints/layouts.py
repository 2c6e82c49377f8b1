"""The layouts of published weights, and the rules that turn their keys into this package's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..deeplab_v1 import DeepLabV1
from . import public
from .from_vgg16 import vgg16_values

Weights = Mapping[str, Tensor]


class Layout(NamedTuple):
    """A published layout.

    Attributes:
        name: the name in the report.
        signs: keys that every file of the layout has.
        rules: pairs of a regular expression and its replacement. The first expression that matches
            a whole key is used.
        needed: prefixes of the model's keys that must get a value.
        ignorable: prefixes of renamed keys that the model need not have.
        version: of the DeepLab whose whole weights these are, "v3plus" for instance.
        values: changes values before keys are renamed.
    """

    name: str
    signs: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    needed: tuple[str, ...]
    ignorable: tuple[str, ...]
    version: str = ""
    values: Callable[[Weights], Weights] = dict


WHOLE = ("backbone.", "classifier.", "multi_scale.")
AUX = ("aux_classifier.",)
FIRST_LAYERS = tuple(
    f"backbone.{layer}.weight" for layer in ("conv1", "conv1.0", "stem.0.conv", "features.0.0")
)
MOBILE = "backbone.low_level_features.0.0.weight"
ASPP_V3, ASPP_PLUS = "classifier.0.convs.0.0.weight", "classifier.aspp.convs.0.0.weight"
# The layers of a unit: the name in a PyTorch port of the second paper, the number in torchvision.
UNIT = (("reduce", "1"), ("conv3x3", "2"), ("increase", "3"))
BASE_RULES = (
    (r"(?:base\.)?layer1\.conv1\.conv\.(.+)", r"backbone.conv1.\1"),
    (r"(?:base\.)?layer1\.conv1\.bn\.(.+)", r"backbone.bn1.\1"),
    *(
        (rf"(?:base\.)?layer(\d)\.block(\d+)\.{name}\.{kind}\.(.+)", rf"{kind}{number}.\3")
        for name, number in UNIT
        for kind in ("conv", "bn")
    ),
    (r"(?:base\.)?layer(\d)\.block(\d+)\.shortcut\.conv\.(.+)", r"downsample.0.\3"),
    (r"(?:base\.)?layer(\d)\.block(\d+)\.shortcut\.bn\.(.+)", r"downsample.1.\3"),
    (r"(?:base\.)?aspp\.c(\d)\.(.+)", r"classifier.branches.\1.\2"),
)
SCALE_RULES = (
    (r"(?:Scale\.)?layer5\.conv2d_list\.(\d)\.(.+)", r"classifier.branches.\1.\2"),
    (r"(?:Scale\.)?(.+)", r"backbone.\1"),
)

LAYOUTS = (
    Layout("deeplab_v2_base", ("base.layer1.conv1.conv.weight",), BASE_RULES, WHOLE, (), "v2"),
    # This port's COCO initialisation ends in a classifier "fc", not in atrous branches.
    Layout(
        "deeplab_v2_base",
        ("layer1.conv1.conv.weight", "fc.weight"),
        BASE_RULES,
        ("backbone.",),
        ("fc.",),
    ),
    Layout("deeplab_v2_base", ("layer1.conv1.conv.weight",), BASE_RULES, WHOLE, (), "v2"),
    *(
        Layout("deeplab_v2_scale", (sign,), SCALE_RULES, WHOLE, (), "v2")
        for sign in ("Scale.layer5.conv2d_list.0.weight", "layer5.conv2d_list.0.weight")
    ),
    *(
        Layout("deeplab_v2", signs, (), WHOLE, (), "v2")
        for signs in (
            ("backbone.features.0.weight", "classifier.branches.0.0.weight"),
            ("backbone.conv1.weight", "classifier.branches.0.weight"),
        )
    ),
    Layout(
        "deeplab_v1", ("backbone.features.0.weight", "classifier.6.weight"), (), WHOLE, (), "v1"
    ),
    *(
        Layout("vainf", (MOBILE, head), rules, WHOLE, AUX, version)
        for head, rules, version in (
            (ASPP_PLUS, public.VAINF_PLUS, "v3plus"),
            (f"classifier.{ASPP_V3}", public.VAINF, "v3"),
        )
    ),
    Layout(
        "deeplab_v3",
        ("backbone.conv1.weight", f"classifier.{ASPP_V3}"),
        public.VAINF,
        WHOLE,
        AUX,
        "v3",
    ),
    # VainF's with a ResNet have the same keys.
    *(
        Layout("deeplab_v3plus", (first, ASPP_PLUS), public.VAINF_PLUS, WHOLE, AUX, "v3plus")
        for first in FIRST_LAYERS
    ),
    *(Layout("deeplab_v3", (first, ASPP_V3), (), WHOLE, AUX, "v3") for first in FIRST_LAYERS),
    Layout("deeplab_v3", ("backbone.conv1.weight", "classifier.0.weight"), (), WHOLE, AUX, "v3"),
    *(
        Layout("smp", ("encoder.conv1.weight", head), rules, WHOLE, (), version)
        for head, rules, version in (
            ("decoder.block1.0.weight", public.SMP_PLUS, "v3plus"),
            ("decoder.aspp.convs.0.0.weight", public.SMP, "v3"),
            ("decoder.0.convs.0.0.weight", public.SMP, "v3"),
        )
    ),
    *(
        Layout("mmseg", (head,), rules, WHOLE, AUX, version, public.pooled_branch_last)
        for head, rules, version in (
            ("decode_head.c1_bottleneck.conv.weight", public.MMSEG_PLUS, "v3plus"),
            ("decode_head.image_pool.1.conv.weight", public.MMSEG, "v3"),
        )
    ),
    Layout(
        "resnet",
        ("conv1.weight", "layer4.0.conv3.weight"),
        ((r"fc\.(.+)", r"fc.\1"), (r"(.+)", r"backbone.\1")),
        # Only the cascade has blocks after the fourth; torchvision's weights have none for them.
        tuple(
            f"backbone.{part}" for part in ("conv1", "bn1", *(f"layer{i}." for i in range(1, 5)))
        ),
        ("fc.",),
    ),
    Layout(
        "vgg16",
        ("features.0.weight", "classifier.0.weight"),
        ((r"features\.(.+)", r"backbone.features.\1"), (r"classifier\.(.+)", r"fc.\1")),
        ("backbone.",),
        ("fc.",),
    ),
    Layout(
        "xception",
        ("stem.0.conv.weight", "blocks.0.stack.conv1.conv_dw.weight"),
        ((r"head\.(.+)", r"fc.\1"), (r"(.+)", r"backbone.\1")),
        ("backbone.",),
        ("fc.",),
    ),
    Layout(
        "mobilenet_v2",
        ("features.0.0.weight", "features.1.conv.0.0.weight", "features.18.0.weight"),
        (
            (r"(features\.18|classifier)\.(.+)", r"fc.\1.\2"),
            (r"(.+)", r"backbone.\1"),
        ),
        ("backbone.",),
        ("fc.",),
    ),
)
SOURCES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))


def recognise(weights: Weights) -> Layout | None:
    return next((layout for layout in LAYOUTS if all(k in weights for k in layout.signs)), None)


def translate(weights: Weights, layout: Layout, model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights by this package's keys; keys that match no rule do not change."""
    if layout.name == "vgg16" and isinstance(model, DeepLabV1):
        return vgg16_values(weights, model)
    return renamed(weights, layout)


def renamed(weights: Weights, layout: Layout) -> dict[str, Tensor]:
    values = layout.values(weights).items()
    return {_renamed(key, layout.rules): value for key, value in values}


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, key)
        if found is None:
            continue
        renamed = found.expand(replacement)
        if rules is BASE_RULES and ".block" in key:
            # That port counts the stem as the first layer, and counts units from 1.
            return f"backbone.layer{int(found[1]) - 1}.{int(found[2]) - 1}.{renamed}"
        return renamed
    return key
