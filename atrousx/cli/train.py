"""``atrousx train``: trains a DeepLab by a recipe, in one process or under torchrun."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import data
from .._processes import is_first
from ..models import LoadReport
from ..models.checkpoints.files import StoredWeights
from ..models.segmenter import Segmenter
from ..training import (
    CheckpointError,
    Checkpoints,
    Console,
    JsonLines,
    Recipe,
    Running,
    Stopped,
    TensorBoard,
    Trainer,
    TrainingError,
    Watcher,
    build_network,
    draw_curves,
)
from ..training.watch import has_tensorboard
from ._dataset import add_dataset_options, chosen_dataset
from ._processes import process_group
from ._progress import Progress
from ._recipe import add_recipe_options, chosen_recipes
from ._shared import CommandError, add_device_option, chosen_device, make_folder, one_line

if TYPE_CHECKING:
    from ._shared import Commands

DESCRIPTION = """Trains a DeepLab by a recipe and writes checkpoints, log.jsonl and curves.png to
--out. Under torchrun all processes train one network. With --resume a run that was stopped goes on,
and its weights become the same bits as if it had not been stopped."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "train", help="train a DeepLab on a data set", description=DESCRIPTION
    )
    add_dataset_options(parser, val_split="val")
    parser.add_argument(
        "--no-validation", action="store_true", help="do not evaluate, for lack of a second list"
    )
    parser.add_argument(
        "--check", action="store_true", help="read every file of the data set before training"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights to start from: a whole DeepLab of any known layout, whatever its classes, or "
        "ImageNet's ResNet or VGG-16; default: random weights",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_running_options(parser)
    add_device_option(parser)
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def _add_running_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    for name, default, meaning in (
        ("workers", 2, "processes that read images, for each process that trains"),
        ("evaluate-every", 0, "iterations between evaluations; 0: only at the end"),
        ("save-every", 500, "iterations between checkpoints"),
        ("keep", 2, "number of the last checkpoints that stay"),
        ("log-every", 10, "iterations between lines of the log"),
    ):
        group.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{meaning}; {default}"
        )


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises before anything else if OpenCV is missing
    recipes = chosen_recipes(args)
    with process_group(chosen_device(args)) as device:
        try:
            command = _Command(args, recipes, device)
            command.run()
        except Stopped as stopped:
            print(f"{stopped}; --resume goes on from there")
            return 128 + stopped.signal_number
        except (TrainingError, CheckpointError, data.DatasetError) as error:
            raise CommandError(one_line(error)) from error
        except OSError as error:
            # For instance a full disk, when the log is written.
            raise CommandError(f"{error.filename or args.out}: {error.strerror}") from error
    return 0


class _Command:
    """One run of the command: the recipes follow each other, each in a folder of its own."""

    def __init__(
        self, args: argparse.Namespace, recipes: list[tuple[str, Recipe]], device: Any
    ) -> None:
        self.args, self.recipes, self.device = args, recipes, device
        if args.split is None and not args.no_validation:
            # A plain folder's every photograph would hold those to evaluate on, too.
            args.split = args.usual_split
        self.dataset = chosen_dataset(args)
        self.validation = None if args.no_validation else chosen_dataset(args, "val_split")
        if args.check:
            _check(self.dataset, *([self.validation] if self.validation else []))
        make_folder(args.out)

    def run(self) -> None:
        before: StoredWeights | None = None
        for number, (name, recipe) in enumerate(self.recipes, 1):
            out = self.args.out
            if len(self.recipes) > 1:
                out = out / f"{number}_{name}"
                make_folder(out)
            before = self._train(recipe, out, before)
        self._end(out)

    def _train(self, recipe: Recipe, out: Path, before: StoredWeights | None) -> StoredWeights:
        """Trains by one recipe, and returns the weights with their network."""
        saved = self._saved(out)
        # A checkpoint holds the weights of its run.
        model, report = self._network(recipe, None if saved else before or self.args.weights)
        running = self._running(out)
        iteration = saved["training"]["iteration"] if saved else 0
        watchers = self._watchers(out, iteration, recipe) if is_first() else []
        trainer = Trainer(model, recipe, self.dataset, self.validation, running, watchers=watchers)
        if saved:
            trainer.load_state_dict(saved)
        if is_first():
            _say_start(trainer, report, iteration, before is not None)
        try:
            trainer.run()
        finally:
            for watcher in watchers:
                watcher.close()
        state = trainer.state_dict()
        weights = StoredWeights(state["model"])
        weights.network = state["network"]
        return weights

    def _saved(self, out: Path) -> dict[str, Any] | None:
        checkpoints = Checkpoints(out, keep=1)
        # A worker that torchrun has started again goes on by itself.
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        if checkpoints.files() and not (self.args.resume or again):
            raise CommandError(
                f"--out {out} holds the checkpoints of a run; --resume goes on with it"
            )
        return checkpoints.newest()

    def _network(
        self, recipe: Recipe, weights: str | StoredWeights | None
    ) -> tuple[Segmenter, LoadReport | None]:
        try:
            return build_network(recipe, self.dataset.num_classes, weights)
        except (OSError, ValueError, TypeError, ImportError) as error:
            option = f"--weights {weights}: " if isinstance(weights, str) else ""
            raise CommandError(f"{option}{one_line(error)}") from error

    def _running(self, out: Path) -> Running:
        args = self.args
        try:
            return Running(
                out,
                self.device,
                workers=args.workers,
                evaluate_every=args.evaluate_every,
                save_every=args.save_every,
                keep=args.keep,
                log_every=args.log_every,
            )
        except ValueError as error:
            raise CommandError(f"--{str(error).replace('_', '-', 1)}") from error

    def _watchers(self, out: Path, iteration: int, recipe: Recipe) -> list[Watcher]:
        watchers = [JsonLines(out, iteration), Console(iteration, recipe.iterations)]
        return [*watchers, TensorBoard(out)] if has_tensorboard() else watchers

    def _end(self, out: Path) -> None:
        if not is_first():
            return
        curves = draw_curves(out)
        if curves is None:
            print("for a picture of the curves: pip install matplotlib")
        else:
            print(f"curves: {curves}")
        last = Checkpoints(out, keep=1).files()[-1]
        print(f"weights: {last}, for instance for atrousx segment --weights {last}")


def _check(*datasets: data.SegmentationDataset) -> None:
    progress = Progress(sum(map(len, datasets)))
    faults = [fault for dataset in datasets for fault in dataset.check(progress.step)]
    progress.close()
    if faults:
        more = f" (and {len(faults) - 1} more; atrousx check-data lists them)"
        raise CommandError(faults[0] + (more if len(faults) > 1 else ""))


def _say_start(trainer: Trainer, report: LoadReport | None, iteration: int, goes_on: bool) -> None:
    recipe, dataset = trainer.recipe, trainer.dataset
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"DeepLab {recipe.model} with {recipe.backbone}: {count / 1e6:.2f} M parameters, "
        f"{dataset.num_classes} classes, {len(dataset)} training images"
    )
    if iteration:
        print(f"resumed after iteration {iteration} of {recipe.iterations}")
    elif goes_on:
        print("the weights are those of the recipe before")
    elif report is None:
        print("the weights are random: nothing was loaded")
    else:
        print(report)
