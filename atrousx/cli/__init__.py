"""The ``atrousx`` command. Each module in PAGES is one subcommand.

Exit codes: 0 means success. 1 means that the doctor found something wrong. 2 means an error that
the user can correct; one line on standard error describes it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..data import OpenCVMissing
from ._shared import CommandError

PAGES = (
    "segment",
    "train",
    "evaluate",
    "refine",
    "crf_search",
    "generate_scenes",
    "check_data",
    "doctor",
    "info",
)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, like all other errors. --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, by default that of ``sys.argv``, and returns the exit code."""
    parser = _Parser(prog="atrousx", description="Semantic segmentation with DeepLab.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for page in PAGES:
        importlib.import_module(f".{page}", __name__).register(commands)
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args)
    except (CommandError, OpenCVMissing) as error:
        print(f"atrousx {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code
