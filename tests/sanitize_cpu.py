"""Runs tests of the operators on a CPU library built with UBSan, the sanitizer of undefined
behaviour: overflow, misaligned vectors, numbers that no integer holds, shifts, null pointers.

    python tests/sanitize_cpu.py [--sample SHARE] [--seed N] [pytest's arguments]

A copy of the tree in build/sanitized is built there by setup.py itself, with a compiler on the
PATH that adds the sanitizer's flags. Only files that differ are copied, so a second build is
incremental. Tests run in that tree, for the instruction set that ATROUSX_CPU asks for; a report of
the sanitizer, or a test that fails, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "sanitized"
REPORTS = TREE / "build" / "reports"
# -O1 compiles quickly; -g1 has the names and lines that a report needs.
FLAGS = "-O1 -g1 -fsanitize=undefined,float-cast-overflow -fno-sanitize=vptr"
# Without its own folder on the PATH, where a compiler cache would look for the compiler.
WRAPPER = """#!/bin/sh
PATH={path} exec {compiler} "$@" {flags}
"""


def copy_tree() -> None:
    """Brings what git tracks, and new files that it does not ignore, to TREE."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, TREE / name
        if not source.is_file():
            target.unlink(missing_ok=True)
        elif not target.is_file() or not filecmp.cmp(source, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def build() -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        raise SystemExit("a C++ compiler, c++, is needed")
    wrapper = TREE / "build" / "bin" / "c++"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    path, compiler = shlex.quote(os.environ["PATH"]), shlex.quote(compiler)
    wrapper.write_text(WRAPPER.format(path=path, compiler=compiler, flags=FLAGS))
    wrapper.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}",
        "ATROUSX_CUDA": "0",
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=TREE, env=environment, check=True)


def environment_of_tests() -> dict[str, str]:
    return {**os.environ, "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORTS}/report"}


def collected(arguments: list[str]) -> list[str]:
    # pyproject.toml has -q already; twice, it would print numbers in place of names.
    command = [sys.executable, "-m", "pytest", "--collect-only", *arguments]
    found = subprocess.run(
        command, cwd=TREE, env=environment_of_tests(), capture_output=True, text=True
    )
    tests = [line for line in found.stdout.splitlines() if "::" in line]
    if not tests:
        raise SystemExit(f"no tests were found:\n{found.stdout}{found.stderr}")
    return tests


def run(tests: list[str]) -> bool:
    """Whether all of them passed without a report. Each place in the code is reported once."""
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
