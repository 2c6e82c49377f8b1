"""Shows which lines of the CUDA files the tests on the emulated device have run.

``python -m tests.emulator.coverage`` runs these tests on a library compiled with gcov's counters
and prints a table: each file, its lines, the share that ran, and the lines that did not.
``--report`` prints the table of the last run. Arguments after ``--`` go to pytest instead of all
tests. The exit status is 1 if a test failed, or if a line did not run that ``ALLOWED`` does not
list.
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
NO_COUNTER = "gcov's counter of an instance lies on another line of the same statement"
# Lines that need not run: the file under csrc, their text without indentation, and the reason. If
# the text of a line is ambiguous, the lines before it come first.
CONV, UPSAMPLE = "atrous_conv2d/cuda", "upsample_bilinear2d/cuda"
ALLOWED = {
    (
        f"{CONV}/atrous_conv2d.cu",
        "return grad_input;\n}",
    ): "the brace only unwinds after an exception",
    (
        f"{UPSAMPLE}/upsample_bilinear2d.cu",
        'launch({"_upsample_bilinear2d_backward", job_grid(jobs.count()), kGatherThreads, stream},',
    ): NO_COUNTER,
    (
        f"{CONV}/simt/simt_kernels.cuh",
        "multiply_panels<T, kColumns>({{source + group * shape.inner * source_strides.c, "
        "source_lanes,",
    ): NO_COUNTER,
    (
        f"{CONV}/simt/simt_product.cuh",
        "panel[depth<kAlongDepth>(i) * 4 * kRowQuads<kLanes> + place<kAlongDepth>(i)] =",
    ): NO_COUNTER,
    (
        f"{CONV}/simt/simt_product.cuh",
        "T held_lanes[Operand<T, kProductLanes>::kCount], "
        "held_columns[Operand<T, kColumns>::kCount];",
    ): NO_COUNTER,
}


def run_tests(arguments: list[str]) -> int:
    build_device("coverage")
    for counts in FOLDER.rglob("*.gcda"):
        counts.unlink()
    environment = {
        **os.environ,
        "ATROUSX_EMULATED": "all",
        "ATROUSX_EMULATED_DEVICE": "coverage",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.emulator.coverage", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def pytest_sessionfinish() -> None:
    """Writes the counters. pytest-xdist kills a process that takes long to end, and they are lost.

    This module is a plugin of the tests that it runs. So it must not import atrousx, which reads
    variables that tests/conftest.py sets.
    """
    device = sys.modules.get("tests.emulator.device")
    if device is not None and device.add_device.cache_info().currsize:
        device.add_device().write_counters()


def lines_of(counts: Path) -> dict[Path, dict[int, int]]:
    """Returns how often each line ran, for every source of csrc in one object file."""
    gcov = ["gcov", "--json-format", "--stdout", str(counts)]
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
    for counts in sorted(FOLDER.rglob("*.gcda")):
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


def is_allowed(file: str, lines: list[str], number: int) -> bool:
    """Whether line ``number`` of a file of csrc need not run. ``lines`` is the file's text."""
    for name, text in ALLOWED:
        count = text.count("\n") + 1
        found = "\n".join(line.strip() for line in lines[max(0, number - count) : number])
        if (name, text) == (file, found):
            return True
    return False


def print_table(runs: dict[Path, dict[int, int]]) -> int:
    """Prints the table, then the lines that should have run. Returns the number of these lines."""
    print(f"{'file':72} lines   ran  not run")
    wrong = []
    for source, counts in sorted(runs.items()):
        if source.suffix not in (".cu", ".cuh"):
            continue
        missing = sorted(number for number, count in counts.items() if count == 0)
        share = 100 * (len(counts) - len(missing)) / len(counts)
        print(f"{source.relative_to(ROOT)!s:72} {len(counts):5} {share:4.0f} %  {spans(missing)}")
        lines = source.read_text().splitlines()
        file = str(source.relative_to(CSRC))
        wrong += [
            f"{source.relative_to(ROOT)}:{number}: {lines[number - 1].strip()}"
            for number in missing
            if not is_allowed(file, lines, number)
        ]
    if wrong:
        print("\nThese lines did not run; tests must run them, or ALLOWED must say why not:")
        print("\n".join(wrong))
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="of the last run, without tests")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    chosen = parser.parse_args()
    code = 0 if chosen.report else run_tests(chosen.pytest or ALL)
    runs = gathered()
    if not runs:
        print(f"no counts in {FOLDER}: no test has run on the device", file=sys.stderr)
        return 1
    return 1 if print_table(runs) else code


if __name__ == "__main__":
    sys.exit(main())
