"""Which lines of the .cu files have the tests on the emulated device run?

``python -m tests.emulator.coverage`` runs them all on a library compiled with gcov's counters and
prints a table: each file, its lines, the share that ran, and those that did not. ``--report``
prints the table of the last run. Arguments behind ``--`` go to pytest in place of all tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from building import ROOT
from tests.emulator.build import build_device

FOLDER = ROOT / "build" / "emulated-device-coverage"
CSRC = ROOT / "csrc"
ALL = ["tests", "-m", "emulated", "-q", "-n", "auto"]


def run_tests(arguments: list[str]) -> int:
    build_device("coverage")
    for counts in FOLDER.glob("*.gcda"):
        counts.unlink()
    environment = {
        **os.environ,
        "ATROUSX_EMULATED": "all",
        "ATROUSX_EMULATED_DEVICE": "coverage",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def lines_of(counts: Path) -> dict[Path, dict[int, int]]:
    """How often each line ran, of every source of csrc that one object was compiled from."""
    gcov = ["gcov", "--json-format", "--stdout", counts.name]
    found = subprocess.run(gcov, cwd=counts.parent, capture_output=True, text=True, check=True)
    runs: dict[Path, dict[int, int]] = {}
    for report in map(json.loads, found.stdout.splitlines()):
        for file in report["files"]:
            source = Path(report["current_working_directory"], file["file"]).resolve()
            if CSRC not in source.parents:
                continue
            of_source = runs.setdefault(source, {})
            for line in file["lines"]:
                number = line["line_number"]
                of_source[number] = of_source.get(number, 0) + line["count"]
    return runs


def gathered() -> dict[Path, dict[int, int]]:
    runs: dict[Path, dict[int, int]] = {}
    for counts in sorted(FOLDER.glob("*.gcda")):
        for source, lines in lines_of(counts).items():
            of_source = runs.setdefault(source, {})
            for number, count in lines.items():
                of_source[number] = of_source.get(number, 0) + count
    return runs


def spans(numbers: list[int]) -> str:
    """1, 2, 3, 7 -> "1-3 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)


def print_table() -> None:
    print(f"{'file':72} lines   ran  not run")
    for source, lines in sorted(gathered().items()):
        if source.suffix not in (".cu", ".cuh"):
            continue
        missing = sorted(number for number, count in lines.items() if count == 0)
        share = 100 * (len(lines) - len(missing)) / len(lines)
        print(f"{source.relative_to(ROOT)!s:72} {len(lines):5} {share:4.0f} %  {spans(missing)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="of the last run, without tests")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    chosen = parser.parse_args()
    code = 0 if chosen.report else run_tests(chosen.pytest or ALL)
    print_table()
    return code


if __name__ == "__main__":
    sys.exit(main())
