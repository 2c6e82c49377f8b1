"""Times two builds of atrousx on the CPU, to show whether a change made anything slower.

    python benchmarks/compare_builds.py OLD_TREE NEW_TREE [--cases crf,depthwise] [--rounds 9]

Two libraries that register the same operators cannot be in one process. So each tree, with its
library built in place, has its own process. Both run on the same core, with one thread, in turns;
every second round has the reverse order. Times are CPU time, medians over the rounds. A case above
the limit is measured again with more rounds. If it is still above, it is reported as slower and the
exit status is 1. Only public functions are called, so the trees may differ internally.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLE = 0.05  # seconds, at least


def serve(tree: str) -> None:
    """Runs in the process of one tree. For each line, a case's name, prints the CPU seconds of a
    call."""
    sys.path.insert(0, tree)
    import torch
    from build_cases import all_cases

    import atrousx

    assert Path(atrousx.__file__).is_relative_to(tree), f"{tree} holds no atrousx"
    torch.set_num_threads(1)
    name, call = "", None
    print(*all_cases(), sep=",", flush=True)
    for line in sys.stdin:
        if call is None or line.strip() != name:
            name, call = line.strip(), None  # frees the previous case
            torch.manual_seed(0)
            call = all_cases()[name]()
            call()
        calls, start = 0, time.process_time()
        while calls == 0 or time.process_time() - start < SAMPLE:
            call()
            calls += 1
        print((time.process_time() - start) / calls, flush=True)


def start(tree: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--serve", str(tree.resolve())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    return process


def ask(process: subprocess.Popen[str], name: str | None = None) -> str:
    """Returns the process's answer to a name or, without a name, the names that it knows."""
    assert process.stdin is not None
    assert process.stdout is not None
    if name is not None:
        print(name, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"the process of {process.args[3]} ended at: {name}")  # type: ignore[index, str-bytes-safe]
    return answer.strip()


def compare(both: list[subprocess.Popen[str]], name: str, rounds: int) -> list[float]:
    samples: list[list[float]] = [[], []]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            samples[which].append(float(ask(both[which], name)))
    return [statistics.median(values) for values in samples]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", type=Path, nargs=2, metavar="TREE", help="old, then new")
    parser.add_argument("--cases", default="", help="only names that hold one of these: crf,argmax")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.03, help="new over old; default: 1.03")
    args = parser.parse_args()
    for tree in args.trees:
        if not list(tree.glob("atrousx/_C*.so")):
            parser.error(f"{tree}: no tree in which atrousx was built in place")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    both = [start(tree) for tree in args.trees]
    names = [ask(process) for process in both][1].split(",")
    slower = 0
    for name in names:
        if not any(part in name for part in args.cases.split(",")):
            continue
        old, new = compare(both, name, args.rounds)
        if new > args.limit * old:
            old, new = compare(both, name, 3 * args.rounds)
        verdict = "  SLOWER" if new > args.limit * old else ""
        slower += bool(verdict)
        times = f"{old * 1e3:>9.3f} ms {new * 1e3:>9.3f} ms {new / old:>7.3f}"
        print(f"{name:<60}{times}{verdict}", flush=True)
    for process in both:
        process.communicate()  # closes its standard input, which ends the process
    print(f"old, new, new over old: {slower} above {args.limit}")
    return 1 if slower else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        sys.exit(main())
