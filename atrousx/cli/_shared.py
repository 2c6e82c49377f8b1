"""Code that several subcommands use: errors, options of the CRF, the device."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from .. import DenseCRF

if TYPE_CHECKING:
    # The class is generic only for type checkers.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class CommandError(Exception):
    """An error that the user can correct; the message is one line."""


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Option, default of DenseCRF, meaning.
CRF_OPTIONS: tuple[tuple[str, float, str], ...] = (
    ("bilateral-weight", 4.0, "weight of the kernel over place and colour"),
    ("bilateral-sigma-xy", 67.0, "its reach in pixels"),
    ("bilateral-sigma-rgb", 3.0, "its reach in grey levels of 255"),
    ("gaussian-weight", 3.0, "weight of the kernel over place alone"),
    ("gaussian-sigma-xy", 3.0, "its reach in pixels"),
)


def add_crf_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dense CRF")
    for name, default, meaning in CRF_OPTIONS:
        group.add_argument(f"--{name}", type=float, metavar="X", help=f"{meaning}; {default:g}")
    group.add_argument("--iterations", type=int, metavar="N", help="mean-field iterations; 10")
    group.add_argument(
        "--normalization",
        choices=("symmetric", "before", "after", "none"),
        help="of the kernels; symmetric",
    )


def crf_arguments(
    args: argparse.Namespace, defaults: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the arguments of the CRF that the options describe, those left out included."""
    chosen: dict[str, Any] = {name.replace("-", "_"): value for name, value, _ in CRF_OPTIONS}
    chosen |= {"iterations": 10, "normalization": "symmetric", **defaults}
    given = {name: getattr(args, name) for name in chosen}
    return chosen | {name: value for name, value in given.items() if value is not None}


def make_crf(
    num_labels: int, args: argparse.Namespace, defaults: Mapping[str, Any] = MappingProxyType({})
) -> DenseCRF:
    """Returns the CRF that the options describe. DenseCRF checks the values itself."""
    try:
        return DenseCRF(num_labels, **crf_arguments(args, defaults))
    except (TypeError, ValueError) as error:
        raise CommandError(one_line(error)) from error


def run_crf(crf: DenseCRF, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Returns the CRF's probabilities. If it refuses the input, raises CommandError.

    The user can correct such an input, for instance a tiny sigma.
    """
    try:
        probabilities: torch.Tensor = crf(logits, image)
    except (ValueError, RuntimeError) as error:
        raise CommandError(one_line(error)) from error
    return probabilities


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out: cannot make the folder {folder}: {error.strerror}") from error


def add_device_option(parser: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=default, help=f"default here: {default}"
    )


def chosen_device(args: argparse.Namespace) -> torch.device:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: PyTorch sees no GPU here")
    return torch.device(args.device)
