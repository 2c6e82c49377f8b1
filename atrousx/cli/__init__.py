"""The ``atrousx`` command; each page holds one subcommand.

Exit codes: 0 all done, 2 something the user can mend (one line on standard error says what).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import crf_search, info, refine, segment
from ._shared import CommandError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, as every other error is; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, ``sys.argv``'s by default, and returns the exit code."""
    parser = _Parser(prog="atrousx", description="Semantic segmentation with DeepLab.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for page in (segment, refine, crf_search, info):
        page.register(commands)
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args)
    except CommandError as error:
        print(f"atrousx {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code
