"""``atrousx doctor``: checks and times every operator on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .. import doctor
from ..doctor.devices import found
from ._shared import CommandError, one_line

if TYPE_CHECKING:
    from ._shared import Commands

# Seconds of timing on a device; see doctor.examine.
TIMING, QUICK_TIMING = 25.0, 5.0


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check every operator on this machine, and time it beside PyTorch's",
        description="Runs every operator forward and backward, in every dtype and layout, on the "
        "CPU and every GPU, against float64; then times DeepLab's layers and the dense CRF beside "
        "PyTorch. Under a minute on a GPU, under three on two cores. The report is fit for an "
        "issue. Exit status: 0 all right, 1 something is wrong, 2 a wrong option.",
    )
    parser.add_argument(
        "--device",
        default="all",
        metavar="NAME",
        help="cpu, cuda:0 or another device of PyTorch's, several comma-separated; all",
    )
    parser.add_argument("--operators", metavar="NAME,...", help="check these alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, little timing")
    parser.add_argument("--no-timing", action="store_true", help="check results alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every check there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    names = found() if args.device == "all" else args.device.split(",")
    seconds = 0.0 if args.no_timing else QUICK_TIMING if args.quick else TIMING
    try:
        if args.json is not None:
            args.json.touch()  # raises now, not after minutes of checks, if it cannot be written
        operators = args.operators.split(",") if args.operators else []
        report = doctor.examine(names, args.quick, operators, seconds, _progress())
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    except OSError as error:
        raise CommandError(f"--json {args.json}: {error.strerror}") from error
    print(doctor.as_text(report))
    if args.json is not None:
        args.json.write_text(doctor.as_json(report) + "\n")
    return 0 if report.is_well else 1


def _progress() -> Callable[[str], None]:
    """Returns a function that writes a line over the last one, but only on a terminal."""
    if not sys.stderr.isatty():
        return lambda line: None

    def show(line: str) -> None:
        print(f"\r{line:<50}", end="\r", file=sys.stderr, flush=True)

    return show
