"""``atrousx crf-search``: finds the best CRF parameters for a network on a validation set."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import data
from ..crf import (
    Counts,
    FixedOptions,
    Grid,
    Round,
    Sample,
    Setting,
    best_setting,
    coarse_to_fine,
    confusions,
    mean_iou,
)
from ._heat_map import draw_heat_maps
from ._progress import Progress
from ._shared import CommandError, add_device_option, chosen_device, make_folder, one_line
from ._validation import Files, find_files, load_sample

if TYPE_CHECKING:
    from ._shared import Commands

SHOWN = 10

DESCRIPTION = """Finds the dense CRF's bilateral weight (w1), sigma_xy and sigma_rgb for a network
as the DeepLab papers did: every combination of the given values on a validation set, then finer
steps around the best, by mean IoU. Every scores file NAME.npy or NAME.npz takes part, with the
photograph NAME.jpg (or .png, ...) and the true labels NAME.png, where 255 is ignored. Prints tables
and writes DIR/crf-search.json, whose "best" are DenseCRF's arguments, and DIR/crf-search.png, the
surface of mean IoU."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "crf-search",
        help="find the dense CRF's parameters on a validation set",
        description=DESCRIPTION,
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="photographs")
    parser.add_argument(
        "--scores",
        required=True,
        type=Path,
        metavar="DIR",
        help="the network's scores, floating [labels, height, width], of the photograph's size or "
        "smaller (they are upsampled): logits, before any softmax",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="the scores are probabilities, not logits"
    )
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR", help="true labels")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--limit", type=_positive_int, metavar="N", help="take the first N by name; default: all"
    )
    grid = parser.add_argument_group("searched", "values to try first, separated by commas")
    for name, values, meaning in (
        ("bilateral-weight", "3,4,5,6", "w1"),
        ("bilateral-sigma-xy", "30,40,50,60,70,80,90,100", "in pixels"),
        ("bilateral-sigma-rgb", "3,4,5,6", "in grey levels of 255"),
    ):
        grid.add_argument(
            f"--{name}",
            type=_values,
            default=_values(values),
            metavar="X,...",
            help=f"{meaning}; {values}",
        )
    grid.add_argument(
        "--rounds", type=_positive_int, default=2, metavar="N", help="each halves the steps; 2"
    )
    _add_fixed_options(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def _add_fixed_options(parser: argparse.ArgumentParser) -> None:
    fixed = parser.add_argument_group("kept fixed")
    fixed.add_argument("--gaussian-weight", type=_number, default=3.0, metavar="X", help="3; or 0")
    fixed.add_argument(
        "--gaussian-sigma-xy", type=_positive, default=3.0, metavar="X", help="in pixels; 3"
    )
    fixed.add_argument("--iterations", type=_positive_int, default=10, metavar="N", help="10")
    fixed.add_argument(
        "--normalization",
        choices=("symmetric", "before", "after", "none"),
        default="symmetric",
        help="of the kernels; symmetric",
    )


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _positive(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise ValueError
    return value


def _positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _values(text: str) -> tuple[float, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


# argparse shows these names in its message about a wrong value.
_number.__name__ = "number"
_positive.__name__ = "positive number"
_positive_int.__name__ = "positive whole number"
_values.__name__ = "list of positive numbers"


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises at once if OpenCV is missing, not after a long run
    device = chosen_device(args)
    files = find_files(args.images, args.scores, args.labels)[: args.limit]
    make_folder(args.out)
    search = _Search(files, args, device)
    search.check()
    grid = Grid(args.bilateral_weight, args.bilateral_sigma_xy, args.bilateral_sigma_rgb)
    done: list[Round] = []
    for found in coarse_to_fine(grid, args.rounds, search.evaluate):
        done.append(found)
        _print_round(found, len(done), args.rounds)
        # A search may take hours, so the results are written after each round.
        search.write(done, args.out)
    _print_end(done)
    print(f"look at {args.out / 'crf-search.png'}; the numbers are in crf-search.json beside it")
    return 0


def _all_scores(rounds: Sequence[Round]) -> dict[Setting, float]:
    return {setting: score for found in rounds for setting, score in found.scores.items()}


def _print_round(found: Round, number: int, rounds: int) -> None:
    ranked = sorted(found.scores.items(), key=lambda item: -item[1])
    heading = f"round {number} of {rounds}: {len(ranked)} combinations"
    print(heading + (f", the best {SHOWN}:" if len(ranked) > SHOWN else ":"))
    print(f"{'w1':>8} {'sigma_xy':>10} {'sigma_rgb':>10} {'mean IoU':>10}")
    for (weight, xy, rgb), score in ranked[:SHOWN]:
        print(f"{weight:8g} {xy:10g} {rgb:10g} {score:10.2%}")


def _print_end(done: Sequence[Round]) -> None:
    scores = _all_scores(done)
    best = best_setting(scores)
    options = [f"--{name.replace('_', '-')} {value:g}" for name, value in best._asdict().items()]
    print(f"best, {scores[best]:.2%}: {' '.join(options)}")
    for name, value in best._asdict().items():
        tried = sorted({getattr(setting, name) for setting in scores})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            end = "smallest" if value == tried[0] else "largest"
            print(f"--{name.replace('_', '-')} {value:g} is the {end} tried: try beyond it")


class _Search:
    """A search on a validation set. Each round reads the set again: it may not fit into memory."""

    def __init__(self, files: Sequence[Files], args: argparse.Namespace, device: torch.device):
        self.files, self.probabilities, self.device = files, args.probabilities, device
        self.fixed = FixedOptions(
            args.gaussian_weight, args.gaussian_sigma_xy, args.iterations, args.normalization
        )
        self.num_labels = 0
        self.without_crf = math.nan

    def load(self, files: Files) -> Sample:
        sample = load_sample(files, self.probabilities, self.device)
        self.num_labels = self.num_labels or len(sample.logits)
        if len(sample.logits) != self.num_labels:
            raise CommandError(
                f"{files.scores} has {len(sample.logits)} labels, "
                f"but {self.files[0].scores} has {self.num_labels}"
            )
        return sample

    def check(self) -> None:
        """Reads every file once, so that a wrong file is found before hours of search."""
        self.without_crf = self._mean_ious([])[None]
        if math.isnan(self.without_crf):
            raise CommandError("the labels hold nothing but 255")
        print(
            f"{_photographs(len(self.files))}, {self.num_labels} labels, "
            f"mean IoU without the CRF {self.without_crf:.2%}"
        )

    def evaluate(self, settings: list[Setting]) -> dict[Setting, float]:
        if not settings:
            return {}
        found = self._mean_ious(settings)
        return {setting: found[setting] for setting in settings}

    def _mean_ious(self, settings: list[Setting]) -> dict[Setting | None, float]:
        total: dict[Setting | None, Counts] = {}
        progress = Progress(len(self.files) * max(1, len(settings)))
        try:
            for files in self.files:
                sample = self.load(files)
                for setting, counts in _confusions(sample, settings, self.fixed, progress).items():
                    total[setting] = total.get(setting, 0) + counts
        finally:
            progress.close()
        return {setting: mean_iou(counts) for setting, counts in total.items()}

    def write(self, done: Sequence[Round], out: Path) -> None:
        scores = _all_scores(done)
        best = best_setting(scores)
        report = {
            "best": {**best._asdict(), **self.fixed._asdict()},
            "mean_iou": scores[best],
            "mean_iou_without_crf": self.without_crf,
            "photographs": len(self.files),
            "settings": [{**s._asdict(), "mean_iou": iou} for s, iou in scores.items()],
        }
        title = (
            f"mean IoU in %, {_photographs(len(self.files))}; "
            f"without the CRF {100 * self.without_crf:.2f}, best {100 * scores[best]:.2f}"
        )
        try:
            (out / "crf-search.json").write_text(json.dumps(report, indent=2) + "\n")
            data.write_image(out / "crf-search.png", draw_heat_maps(done, best, title))
        except OSError as error:
            raise CommandError(one_line(error)) from error


def _confusions(
    sample: Sample, settings: list[Setting], fixed: FixedOptions, progress: Progress
) -> dict[Setting | None, Counts]:
    try:
        with torch.inference_mode():
            found = confusions(sample, settings, fixed, progress.step)
    except (ValueError, RuntimeError) as error:
        raise CommandError(one_line(error)) from error
    if not settings:
        progress.step()
    return found


def _photographs(count: int) -> str:
    return f"{count} photograph{'s' if count > 1 else ''}"
