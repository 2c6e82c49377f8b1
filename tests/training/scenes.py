"""A small generated data set and a small recipe, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from atrousx import data
from atrousx.training import Recipe, Running, Trainer, build_network

# VGG-16 has the fewest layers, and dropout, so its random numbers count, too.
RECIPE = Recipe(
    model="v1",
    backbone="vgg16",
    width=0.05,
    crop=(33, 33),
    iterations=4,
    batch_size=4,
    lr=0.005,
)
V3 = RECIPE.replace(model="v3", backbone="resnet50", output_stride=16, batch_size=2)
V2 = RECIPE.replace(model="v2", head="large_fov", multi_scale=True, batch_size=2)


def make_scenes(folder: Path) -> Path:
    data.generate_scenes(folder, train=6, val=2, size=(64, 64))
    return folder


def opened(folder: Path, split: str = "train") -> data.SegmentationDataset:
    return data.open_dataset("voc", folder, split)


def trainer_of(recipe: Recipe, scenes: Path, out: Path, **options) -> Trainer:
    dataset = opened(scenes)
    model, _ = build_network(recipe, dataset.num_classes)
    validation = opened(scenes, "val") if options.pop("validates", False) else None
    watchers = options.pop("watchers", [])
    running = Running(out, torch.device("cpu"), **{"workers": 0, **options})
    return Trainer(model, recipe, dataset, validation, running, watchers=watchers)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
