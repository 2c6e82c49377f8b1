"""Runs the operators' tests on a CPU library built with UBSan. This sanitizer detects undefined
behaviour: overflow, misaligned vectors, numbers that do not fit an integer, shifts, null pointers.

    python -m tests.sanitize_cpu [--sample SHARE] [--seed N] [pytest's arguments]

setup.py builds a copy of the tree in build/sanitized, with the sanitizer's flags. Files keep their
times, so a second build compiles only changed files. Tests run in that tree, with the instruction
set in ATROUSX_CPU. If the sanitizer reports something or a test fails, the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys

from tests.tree import ROOT, source_files

TREE = ROOT / "build" / "sanitized"
REPORTS = TREE / "build" / "reports"
# -O1 compiles quickly. -g1 has the names and lines that a report needs.
FLAGS = "-O1 -g1 -fsanitize=undefined,float-cast-overflow -fno-sanitize=vptr"


def copy_tree() -> None:
    """Copies the sources to TREE with their times. Keeps nothing else except the build folder."""
    TREE.mkdir(parents=True, exist_ok=True)
    for old in TREE.iterdir():
        if old.is_file():
            old.unlink()
        elif old.name != "build":
            shutil.rmtree(old)
    for name in source_files():
        (TREE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, TREE / name)


def build() -> None:
    environment = {**os.environ, "ATROUSX_CUDA": "0", "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=TREE, env=environment, check=True)


def environment_of_tests() -> dict[str, str]:
    return {**os.environ, "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORTS}/report"}


def collected(arguments: list[str]) -> list[str]:
    # pyproject.toml already has -q. With a second -q pytest would print counts instead of names.
    command = [sys.executable, "-m", "pytest", "--collect-only", *arguments]
    found = subprocess.run(
        command, cwd=TREE, env=environment_of_tests(), capture_output=True, text=True
    )
    tests = [line for line in found.stdout.splitlines() if "::" in line]
    if not tests:
        raise SystemExit(f"no tests were found:\n{found.stdout}{found.stderr}")
    return tests


def run(tests: list[str]) -> bool:
    """Whether all tests passed without a report. Each place in the code is reported once."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    listed = REPORTS.parent / "tests.txt"
    listed.write_text("\n".join(tests))
    options = ["-p", "no:cacheprovider", "-n", "auto", "--maxprocesses", "8"]
    command = [sys.executable, "-m", "pytest", *options, f"@{listed}"]
    passed = subprocess.run(command, cwd=TREE, env=environment_of_tests()).returncode == 0
    reports = sorted(REPORTS.iterdir())
    for report in reports:
        print(report.read_text(errors="replace")[:20000])
    return passed and not reports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=float, default=1.0, help="the share of tests to run")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    options, arguments = parser.parse_known_args()
    copy_tree()
    build()
    tests = collected(arguments or ["tests/ops"])
    if options.sample < 1:
        count = max(1, round(options.sample * len(tests)))
        tests = sorted(random.Random(options.seed).sample(tests, count), key=tests.index)
    if not run(tests):
        raise SystemExit(1)
    print(f"{len(tests)} tests passed without a report of the sanitizer")


if __name__ == "__main__":
    main()
