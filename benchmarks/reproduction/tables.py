"""The variants of each table, and how each trained network is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atrousx.training import Recipe

from .budgets import Budget


@dataclass(frozen=True)
class View:
    """One way to label the images of a trained network.

    Args:
        name: what the results call it.
        output_stride: changes that of v3 before this view and those after it.
        scales: sizes at which the network sees an image.
        flip: whether it also sees mirror images.
        crf: also measures the labels after the CRF, as another result.
    """

    name: str
    output_stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crf: bool = False


@dataclass(frozen=True)
class Variant:
    """One network of a table.

    Args:
        name: names the folder of its runs, so it is unique over all tables.
        recipe: how it is trained.
        views: how it is evaluated.
        pretrained: whether its backbone starts from the pretrained VGG-16.
        rate_divisor: divides the rates of the head.
        image_pooling: whether ASPP's branch of image-level features takes part.
    """

    name: str
    recipe: Recipe
    views: tuple[View, ...]
    pretrained: bool = False
    rate_divisor: int = 1
    image_pooling: bool = True


BEFORE_AND_AFTER_CRF = (View("single", crf=True),)


def v1(budget: Budget) -> list[Variant]:
    """Table 2 of arXiv:1412.7062: the forms of fc6."""
    return [_v1(budget, fc6) for fc6 in ("7x7_r4", "4x4_r4", "4x4_r8", "large_fov")]


def _v1(budget: Budget, fc6: str, multi_scale: bool = False) -> Variant:
    name = f"v1_{fc6}" + ("_msc" if multi_scale else "")
    recipe = budget.recipe("v1", head=fc6, multi_scale=multi_scale)
    return Variant(name, recipe, BEFORE_AND_AFTER_CRF, pretrained=True)


def v2(budget: Budget) -> list[Variant]:
    """Tables 2 to 4 of arXiv:1606.00915 with VGG-16: learning rate, head, three scales."""
    recipes: dict[str, dict[str, Any]] = {
        "large_fov_step": {"head": "large_fov", "schedule": "step"},
        "large_fov_poly": {"head": "large_fov"},
        "aspp_s": {"head": "aspp_s"},
        "aspp_l": {"head": "aspp_l"},
        "aspp_l_msc": {"head": "aspp_l", "multi_scale": True},
    }
    return [
        Variant(
            f"v2_{name}",
            budget.recipe("v2_vgg16", **changes),
            BEFORE_AND_AFTER_CRF,
            pretrained=True,
        )
        for name, changes in recipes.items()
    ]


def v3(budget: Budget) -> list[Variant]:
    """Tables 1, 5 and 6 of arXiv:1706.05587: block 7 by output stride, multi-grid, inference."""
    single = (View("os16"),)
    inference = (
        *single,
        View("os8", 8),
        View("os8_scales", 8, budget.scales),
        View("os8_scales_flip", 8, budget.scales, flip=True),
    )
    heads = [
        _v3(budget, "aspp_mg124", inference),
        _v3(budget, "aspp_mg121", single, multi_grid=(1, 2, 1)),
        _v3(budget, "aspp_mg111", single, multi_grid=(1, 1, 1)),
        _v3(budget, "aspp_mg124_no_image_pooling", single, image_pooling=False),
    ]
    cascade = [
        _v3(
            budget,
            f"block7_os{stride}",
            (View(f"os{stride}"),),
            head="cascade",
            multi_grid=(1, 1, 1),
            output_stride=stride,
        )
        for stride in (8, 16, 32, 64)
    ]
    return heads + cascade


def _v3(
    budget: Budget,
    name: str,
    views: tuple[View, ...],
    image_pooling: bool = True,
    multi_grid: tuple[int, ...] = (1, 2, 4),
    **changes: Any,
) -> Variant:
    recipe = budget.recipe("v3_os16", multi_grid=multi_grid, **changes)
    return Variant(
        f"v3_{name}",
        recipe,
        views,
        rate_divisor=budget.v3_rate_divisor,
        image_pooling=image_pooling,
    )


def trimap(budget: Budget) -> list[Variant]:
    """The trimap figure of arXiv:1412.7062: mean IoU near the borders, before and after the CRF."""
    return [_v1(budget, "large_fov"), _v1(budget, "large_fov", multi_scale=True)]


TABLES = {"v1": v1, "v2": v2, "v3": v3, "trimap": trimap}
"""Functions from a budget to the table's variants."""
