"""Trains and evaluates one variant with one seed; a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atrousx import DenseCRF
from atrousx.data import SCENE_CLASSES, VOC, DatasetError, generate_scenes
from atrousx.metrics import Evaluation, evaluate
from atrousx.metrics.trimap import WIDTHS
from atrousx.models import DeepLabV3, set_output_stride
from atrousx.models.segmenter import Segmenter
from atrousx.training import JsonLines, Recipe, Running, Trainer
from atrousx.training.checkpoint import weights_of, write_atomically

from .budgets import Budget
from .networks import network, pretraining_network
from .tables import Variant, View

CLASSES = len(SCENE_CLASSES)
# Folders under the reproduction's own.
SCENES, PRETRAINING_SCENES, RUNS = "scenes", "pretraining_scenes", "runs"
Result = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What all runs share: the folder of everything, the budget, device and threads."""

    folder: Path
    budget: Budget
    device: str
    threads: int
    workers: int

    def scenes(self, split: str, folder: str = SCENES) -> VOC:
        return VOC(self.folder / folder, split)

    def run_folder(self, name: str, seed: int) -> Path:
        return self.folder / RUNS / name / f"seed_{seed}"


def make_scenes(setup: Setup) -> None:
    """Generates both data sets, unless that was done.

    Raises:
        DatasetError: the folder cannot be written, or its runs have other sizes.
    """
    budget = setup.budget
    sizes = setup.folder / "sizes.txt"
    if sizes.exists() and sizes.read_text() != repr(budget):
        raise DatasetError(f"{setup.folder}: holds runs of other sizes")
    setup.folder.mkdir(parents=True, exist_ok=True)
    sizes.write_text(repr(budget))
    for seed, name in enumerate((SCENES, PRETRAINING_SCENES)):
        folder, partial = setup.folder / name, setup.folder / f"{name}.partial"
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            size = (budget.size, budget.size)
            generate_scenes(partial, train=budget.train, val=budget.val, size=size, seed=seed)
            partial.rename(folder)


def pretrain(setup: Setup, seed: int) -> dict[str, Tensor]:
    """Returns the backbone's weights after the pretraining, which runs once for each seed."""
    folder = setup.run_folder("pretraining", seed)
    file = folder / "backbone.pt"
    if not file.exists():
        torch.set_num_threads(setup.threads)
        recipe = setup.budget.recipe("pretraining", seed=seed)
        model = pretraining_network(recipe, CLASSES)
        _train(setup, model, recipe, folder, PRETRAINING_SCENES)
        write_atomically(file, weights_of(model.get_submodule("backbone")))
    weights: dict[str, Tensor] = torch.load(file, weights_only=True)
    return weights


def run(setup: Setup, variant: Variant, seed: int) -> Result:
    """Returns the results of a variant and a seed: those on disk, or after training."""
    folder = setup.run_folder(variant.name, seed)
    file = folder / "results.json"
    recipe = variant.recipe.replace(seed=seed)
    if file.exists():
        found: Result = json.loads(file.read_text())
        return found
    torch.set_num_threads(setup.threads)
    backbone = pretrain(setup, seed) if variant.pretrained else None
    model = network(variant, recipe, CLASSES, backbone)
    started = time.monotonic()
    _train(setup, model, recipe, folder, SCENES)
    found = {
        "variant": variant.name,
        "seed": seed,
        "parameters": sum(value.numel() for value in model.parameters()),
        "seconds": round(time.monotonic() - started),
        "views": {},
    }
    for view in variant.views:
        found["views"] |= _viewed(setup, model, view)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, file)
    return found


def _train(setup: Setup, model: Segmenter, recipe: Recipe, folder: Path, scenes: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(setup.device)
    running = Running(folder, device, workers=setup.workers, save_every=200, keep=1, log_every=50)
    dataset = setup.scenes("train", scenes)
    trainer = Trainer(model.to(device), recipe, dataset, None, running, watchers=[])
    saved = trainer.checkpoints.newest()
    if saved is not None:
        trainer.load_state_dict(saved)
    trainer.watchers = [JsonLines(folder, trainer.iteration)]
    trainer.run()


def _viewed(setup: Setup, model: Segmenter, view: View) -> Mapping[str, Result]:
    """Returns the results of a view; one with a CRF has two."""
    if view.output_stride is not None:
        assert isinstance(model, DeepLabV3)
        set_output_stride(model, view.output_stride)
    crf = DenseCRF(CLASSES, **setup.budget.crf).to(setup.device) if view.crf else None
    found = evaluate(
        model,
        setup.scenes("val"),
        scales=view.scales,
        flip=view.flip,
        crf=crf,
        trimap_widths=WIDTHS,
        workers=setup.workers,
    )
    measured = {view.name: _measured(found, refined=False)}
    if view.crf:
        measured[f"{view.name}_crf"] = _measured(found, refined=True)
    return measured


def _measured(found: Evaluation, refined: bool) -> Result:
    measures = found.refined if refined else found.labels
    assert measures is not None
    assert measures.trimap is not None
    iou = measures.confusion.iou().tolist()
    return {
        "mean_iou": measures.confusion.mean_iou(),
        "iou": dict(zip(SCENE_CLASSES, iou, strict=True)),
        "trimap": dict(zip(map(str, WIDTHS), measures.trimap.mean_iou().tolist(), strict=True)),
    }
