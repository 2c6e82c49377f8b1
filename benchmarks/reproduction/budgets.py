"""How large the scenes, the networks and the trainings of a reproduction are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from atrousx.training import RECIPES, Recipe


@dataclass(frozen=True)
class Budget:
    """The sizes that all variants of all tables share.

    Args:
        train: number of scenes to train on.
        val: number of scenes to evaluate on.
        size: height and width of a scene and of a crop.
        v3_rate_divisor: divides the rates of v3's ASPP, for small maps.
        scales: at which multi-scale inference sees an image.
        crf: arguments of ``DenseCRF``.
        common: fields of all recipes that differ from the papers'.
        changes: the same for each recipe. "pretraining" changes "v1".
    """

    train: int
    val: int
    size: int
    v3_rate_divisor: int
    scales: tuple[float, ...]
    crf: Mapping[str, Any]
    common: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Any]]

    def recipe(self, name: str, **changes: Any) -> Recipe:
        """Returns one of the papers' recipes, or "pretraining", at this budget."""
        given = {"crop": (self.size, self.size), **self.common, **self.changes[name], **changes}
        return RECIPES["v1" if name == "pretraining" else name].replace(**given)


# The papers start from ImageNet. Here the backbone learns first from other scenes.
_PRETRAINING = {
    "schedule": "poly",
    "weight_decay": 1e-4,
    "head_multiplier": 1.0,
    "downsample_labels": False,
}

CORES = Budget(
    train=800,
    val=100,
    size=161,
    v3_rate_divisor=2,
    scales=(0.75, 1.0, 1.25),
    crf={
        "bilateral_weight": 4.0,
        "bilateral_sigma_xy": 30.0,
        "bilateral_sigma_rgb": 5.0,
        "gaussian_weight": 1.0,
        "gaussian_sigma_xy": 1.5,
    },
    common={
        "width": 0.125,
        "batch_size": 8,
        "scale": (0.75, 1.25),
        "scale_step": None,
        "backend": "auto",
    },
    changes={
        "pretraining": {**_PRETRAINING, "iterations": 1200, "lr": 0.1},
        # Without the warm-up some seeds of the 4x4 forms learn nothing.
        "v1": {"iterations": 900, "lr": 0.01, "step_size": 300, "warmup_iterations": 100},
        "v2_vgg16": {"iterations": 900, "lr": 0.01, "step_size": 300, "warmup_iterations": 100},
        "v3_os16": {
            "iterations": 1500,
            "lr": 0.08,
            "bn_momentum": 0.1,
            "backbone": "resnet50",
            "channels_last": True,
        },
    },
)
"""For two cores."""

FULL = replace(
    CORES,
    train=10582,
    val=1449,
    size=321,
    v3_rate_divisor=1,
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    crf={**CORES.crf, "bilateral_sigma_xy": 60.0, "gaussian_sigma_xy": 3.0},
    common={"scale": (0.5, 1.5), "scale_step": None, "backend": "measure"},
    changes={
        "pretraining": {**_PRETRAINING, "iterations": 20000, "lr": 0.1},
        "v1": {},
        "v2_vgg16": {},
        "v3_os16": {"lr": 0.02, "bn_momentum": 0.01},
    },
)
"""For a GPU: whole networks, scenes as large as the papers' crops, the papers' iterations."""

QUICK = replace(
    CORES,
    train=6,
    val=2,
    size=65,
    common={**CORES.common, "width": 0.05, "batch_size": 2},
    changes={
        name: {**changes, "iterations": 2, "step_size": 1}
        for name, changes in CORES.changes.items()
    },
)
"""For a test: whether every variant runs."""
