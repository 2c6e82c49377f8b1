"""Recipes: the published values, what is refused, and the learning rate at each iteration."""

import dataclasses
import itertools
import json

import pytest
import torch

from atrousx.models.forms import BACKBONES_OF
from atrousx.training import RECIPES, Recipe, rate_factor
from atrousx.training.network import build_network
from atrousx.training.recipe import BACKBONES, LAYOUTS

PUBLISHED = [
    ("v1", {"lr": 1e-3, "batch_size": 20, "crop": (321, 321), "scale": (1, 1)}),
    ("v1", {"schedule": "step", "step_size": 2000, "gamma": 0.1, "iterations": 6000}),
    ("v2_vgg16", {"lr": 1e-3, "schedule": "poly", "iterations": 20000, "batch_size": 10}),
    ("v2_resnet101", {"lr": 2.5e-4, "scale": (0.5, 1.5), "scale_step": 0.25, "freeze_bn": True}),
    ("v2_resnet101", {"head_multiplier": 10, "bias_multiplier": 2, "weight_decay": 5e-4}),
    ("v3_os16", {"lr": 7e-3, "power": 0.9, "crop": (513, 513), "bn_momentum": 3e-4}),
    ("v3_os16", {"output_stride": 16, "batch_size": 16, "iterations": 30000, "freeze_bn": False}),
    ("v3_os8", {"output_stride": 8, "lr": 1e-3, "freeze_bn": True, "iterations": 30000}),
    ("v3plus", {"backbone": "xception65", "weight_decay": 4e-5, "batch_size": 16, "lr": 7e-3}),
    ("torchvision", {"lr": 0.02, "aux_multiplier": 10, "aux_weight": 0.5, "crop": (480, 480)}),
    ("mmseg", {"lr": 0.01, "min_lr": 1e-4, "aux_weight": 0.4, "weight_decay": 5e-4}),
]


@pytest.mark.parametrize(("name", "values"), PUBLISHED)
def test_recipes_have_the_published_values(name, values):
    recipe = RECIPES[name]
    assert {field: getattr(recipe, field) for field in values} == values
    assert recipe.momentum == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "v4"}, "model must be one of v1, v2, v3, v3plus, got 'v4'"),
        (
            {"model": "v1", "backbone": "vgg16", "recompute": True},
            "recompute must be False for vgg16",
        ),
        ({"backbone": "vgg16"}, "backbone must be resnet50 or .* for v3, got 'vgg16'"),
        ({"head": "large_fov"}, "head must be one of"),
        ({"model": "v3plus", "head": "aspp"}, "head must be one of .None,. for v3plus, got 'aspp'"),
        (
            {"model": "v3plus", "layout": "torchvision"},
            "layout must be one of paper, vainf, smp, mmseg for v3plus, got 'torchvision'",
        ),
        (
            {"layout": "mmseg", "backbone": "mobilenet_v2"},
            "with layout='mmseg', got 'mobilenet_v2'",
        ),
        ({"layout": "smp", "multi_grid": (1, 2, 4)}, "multi_grid belongs to layout='paper'"),
        ({"iterations": 0}, "iterations must be positive, got 0"),
        ({"iterations": 1.5}, "iterations must be a whole number"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"momentum": -1}, "momentum must be at least 0"),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
        ({"crop": (33,)}, "crop must be two positive whole numbers"),
        ({"scale": (2.0, 0.5)}, "scale must be two positive numbers in order"),
        ({"scale": (1.0,)}, "scale must be two positive numbers in order"),
        ({"scale_step": 0.7}, "scale_step must lead from 0.5 to 2 in whole steps, got 0.7"),
        ({"scale_step": -1.0}, "scale_step must lead from 0.5 to 2"),
        ({"batch_size": 4, "accumulate": 3}, "batch_size must be a multiple of accumulate"),
        ({"loss": "focal"}, "loss must be one of cross_entropy, ohem, dice, lovasz"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().replace(**changes)


@pytest.mark.parametrize("model", LAYOUTS)
def test_every_layout_and_backbone_can_be_trained(model):
    for layout, backbone in itertools.product(LAYOUTS[model], BACKBONES[model]):
        if backbone not in BACKBONES_OF.get(layout, BACKBONES[model]):
            continue
        recipe = Recipe(model=model, layout=layout, backbone=backbone, width=0.05)
        network, _ = build_network(recipe, 2)
        images, target = torch.rand(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.int64)
        assert network(images, target).isfinite()


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="a recipe has no field learning_rate"):
        Recipe().replace(learning_rate=1)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    state = json.loads(json.dumps(RECIPES[name].state_dict()))
    assert Recipe.of_state_dict(state) == RECIPES[name]


def test_every_field_is_documented():
    documented = Recipe.__doc__
    missing = [
        f.name for f in dataclasses.fields(Recipe) if f"        {f.name}: " not in documented
    ]
    assert not missing


def test_poly_by_hand():
    recipe = Recipe(iterations=100, lr=0.1, min_lr=0.01)
    assert rate_factor(recipe, 0) == 1
    assert rate_factor(recipe, 50) == pytest.approx(0.9 * 0.5**0.9 + 0.1)
    assert rate_factor(recipe, 100) == pytest.approx(0.1)


def test_warm_up_rises_to_the_schedule():
    recipe = Recipe(schedule="constant", warmup_iterations=10, warmup_factor=0.2)
    assert [rate_factor(recipe, i) for i in (0, 5, 10, 20)] == pytest.approx([0.2, 0.6, 1, 1])
