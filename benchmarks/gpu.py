"""Runs all checks, then all benchmarks, on a machine with a GPU (`make gpu`).

    python benchmarks/gpu.py RESULTS [--device cuda] [--again STEP,...]
    python benchmarks/gpu.py RESULTS --device cpu --quick        a dry run, without a GPU
    python benchmarks/gpu.py RESULTS --device emulated --quick   CUDA's code on the device
                                                                 of tests/emulator, in host memory

It builds and installs nothing. It uses the Python that runs it and the libraries in the source
tree, and needs torch, numpy and pytest. With pytest-xdist, tests run in four processes. Only the
emulated device needs g++ and ninja, if build/emulated-device-plain is not up to date. That device
is slow, so its time limits are longer.

Steps run one after the other. Each has its own time limit; on a GPU all together take less than 15
minutes. Each step writes RESULTS/<step>.log, and CSV and JSON files beside it, while it runs. A
finished step is recorded in RESULTS/steps.json and skipped in the next run, so an interrupted run
can continue. An unfinished step starts again, without the tests that RESULTS/<step>.passed lists.
At the end the table of all steps is always printed. The exit status is 1 if any step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = "benchmarks"
# The sanitizer makes a kernel about a hundred times slower. It runs only small cases and odd
# strides.
SHORT_LIST = "by_hand or any_strides or empty or any_number"
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# The tests, most important first, as steps with a limit in seconds. The last step runs all others.
TESTS = {
    "tests_contract": (
        50,
        ["ops/atrous_conv2d/test_contract.py", "ops/atrous_conv2d/test_walk.py"],
    ),
    "tests_convolution": (
        60,
        [f"ops/atrous_conv2d/test_{name}.py" for name in ("values", "layouts", "padding", "fused")]
        + ["ops/test_multi_rate_conv2d.py"],
    ),
    "tests_upsample": (
        50,
        [
            f"ops/test_upsample_{name}.py"
            for name in ("bilinear2d", "argmax", "softmax_add", "cross_entropy")
        ],
    ),
    "tests_rest": (50, []),
}
PROCESSES = 4
OK, FAILED, TIMED_OUT, LEFT_OUT, NOT_RUN = "ok", "FAILED", "timed out", "left out", "not run"


@dataclass(frozen=True)
class Step:
    """``command`` runs in the source tree. If it is None, ``note`` says why."""

    name: str
    limit: float  # seconds
    command: Sequence[str] | None
    files: Sequence[str] = ()  # files that it writes under RESULTS; removed before it starts
    note: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    status: str
    seconds: float = 0.0
    note: str = ""

    @property
    def is_final(self) -> bool:
        return self.status in (OK, FAILED, LEFT_OUT)


def steps(args: argparse.Namespace) -> list[Step]:
    """Returns the steps in order: first correctness, then speed."""
    doctor = ["-m", "atrousx", "doctor", "--device", args.device]
    doctor += ["--json", str(args.results / "doctor.json")] + ["--quick"] * args.quick
    limit = 100 if args.kind in ("cpu", "cuda") else 1800  # a test device is slow
    command = [sys.executable, *doctor]
    found = [Step("doctor", limit, command, ["doctor.json"], environment=device_environment(args))]
    found += tests(args)
    found += [sanitizer(args, tool) for tool in SANITIZER_TOOLS]
    return found + benchmarks(args)


def device_environment(args: argparse.Namespace) -> dict[str, str]:
    """Returns variables that add the emulated device, without faults, to every Python process."""
    if args.kind != "emulated":
        return {}
    folder = str(ROOT / "tests" / "doctor" / "broken")
    return {"PYTHONPATH": folder, "ATROUSX_TEST_BREAK_KERNEL": ""}


def pytest(*options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]


def tests(args: argparse.Namespace) -> list[Step]:
    found = []
    named = [f"tests/{file}" for _, files in TESTS.values() for file in files]
    for name, (limit, files) in TESTS.items():
        options = [f"tests/{file}" for file in files]
        full = args.on_gpu and not args.quick
        if name == "tests_contract" and not full:
            found.append(Step(name, 0, None, note="too long for a dry run"))
            continue
        if not options:
            # A quick run has only the operators' tests, like the sanitizer.
            options = ["tests" if full else "tests/ops", *(f"--ignore={file}" for file in named)]
        # A quick run takes the sanitizer's tests, on the given device.
        options += ["-m", "cuda"] if full else ["-k", f"{args.kind} and ({SHORT_LIST})"]
        options += ["-p", "benchmarks.passed", "--passed", str(args.results / f"{name}.passed")]
        if importlib.util.find_spec("xdist") is not None:
            options += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
        # conftest.py adds the device itself.
        environment = {"ATROUSX_EMULATED": "all"} if args.kind == "emulated" else {}
        limit = limit if args.kind in ("cpu", "cuda") else 10 * limit
        found.append(Step(name, limit, pytest(*options), environment=environment))
    return found


def sanitizer(args: argparse.Namespace, tool: str) -> Step:
    program = shutil.which("compute-sanitizer")
    if not args.on_gpu or program is None:
        why = "is not on the PATH" if args.on_gpu else "needs a GPU"
        return Step(tool, 0, None, note=f"compute-sanitizer {why}")
    # PyTorch's allocator hands out parts of larger blocks, which hides overruns. Without it every
    # tensor is a separate allocation.
    command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", program, "--tool", tool]
    short = pytest("tests/ops", "-m", "cuda", "-k", SHORT_LIST)
    return Step(tool, 45, [*command, "--error-exitcode=1", *short])


def benchmarks(args: argparse.Namespace) -> list[Step]:
    dtypes = ("bfloat16", "tf32", "float32") if args.on_gpu else ("float32",)
    limits = {"bfloat16": 100, "tf32": 55, "float32": 45}
    found = []
    for dtype in dtypes:
        # The complete list runs in the dtype with the fastest tensor cores; a few layers in the
        # others.
        options = ["--quick"] if args.quick or dtype != "bfloat16" else []
        options += ["--layers", "v2_aspp_r24,depthwise_r2"] if args.quick else []
        options += ["--batch", "1" if args.quick else "16", "--one-format"]
        found.append(bench(args, "atrous", dtype, limits[dtype], [*options, "--seconds", "0.5"]))
    for dtype in dtypes[:2]:
        options = ["--batch", "1" if args.quick else "16", "--seconds", "0.2"]
        options += ["--shapes", "odd,tiny"] if args.quick else []
        found.append(bench(args, "upsample", dtype, 45, options))
    sizes = "100x75x5" if args.quick else "500x375x21,1024x512x19"
    options = ["--sizes", sizes, "--seconds", "3", "--rounds", "1"]
    found.append(bench(args, "crf", "", 40, options))
    models = "v1_large_fov" if args.quick else "v1_large_fov,v2_resnet101_aspp_l,v3_resnet50_os16"
    options = ["--models", models, "--extent", "65" if args.quick else "513", "--seconds", "2"]
    options += ["--rounds", "1", "--batch", "1" if args.quick else "16"]
    found.append(bench(args, "deeplab", dtypes[0], 60, options))
    return found


def bench(
    args: argparse.Namespace, what: str, dtype: str, limit: float, options: Sequence[str]
) -> Step:
    name = f"bench_{what}" + (f"-{dtype}" if dtype else "")
    if args.kind not in ("cpu", "cuda"):
        return Step(name, 0, None, note=f"{args.device} cannot be timed")
    command = [sys.executable, f"{SCRIPTS}/bench_{what}.py", "--device", args.kind, *options]
    if dtype:
        layout = "channels_last" if args.on_gpu else "contiguous"
        command += ["--dtype", dtype, "--memory-format", layout]
    return Step(
        name, limit, [*command, "--csv", str(args.results / f"{name}.csv")], [f"{name}.csv"]
    )


class Run:
    """Keeps the outcomes of the steps, written to disk after each step, and the running process."""

    def __init__(self, results: Path) -> None:
        self.results, self.file = results, results / "steps.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.outcomes: dict[str, Outcome] = {}
        if self.file.exists():
            kept = json.loads(self.file.read_text())
            self.outcomes = {name: Outcome(**outcome) for name, outcome in kept.items()}

    def forget(self, names: Sequence[str]) -> None:
        self.outcomes = {n: o for n, o in self.outcomes.items() if n not in names}
        for name in names:
            (self.results / f"{name}.passed").unlink(missing_ok=True)

    def note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        written = self.file.with_suffix(".new")  # an interruption must not leave half a file
        written.write_text(json.dumps({n: asdict(o) for n, o in self.outcomes.items()}, indent=1))
        written.replace(self.file)

    def step(self, step: Step) -> None:
        if step.name in self.outcomes and self.outcomes[step.name].is_final:
            print(f"\n== {step.name}: {self.outcomes[step.name].status} before", flush=True)
        elif step.command is None:
            print(f"\n== {step.name}: {LEFT_OUT}, {step.note}", flush=True)
            self.note(step.name, Outcome(LEFT_OUT, note=step.note))
        else:
            print(f"\n== {step.name}, at most {step.limit:.0f} s", flush=True)
            self.note(step.name, self._timed(step))

    def _timed(self, step: Step) -> Outcome:
        for file in step.files:
            (self.results / file).unlink(missing_ok=True)
        start = time.perf_counter()
        code = self._command(step)
        seconds = round(time.perf_counter() - start, 1)
        status = TIMED_OUT if code is None else FAILED if code else OK
        return Outcome(status, seconds, f"exit status {code}" if code else "")

    def _command(self, step: Step) -> int | None:
        """Runs the command, and logs and prints its output. Returns its status; None: timeout."""
        assert step.command is not None
        environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
        paths = (step.environment.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        with (self.results / f"{step.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            copier = threading.Thread(target=_copy, args=(self.process, log), daemon=True)
            copier.start()
            try:
                code = self.process.wait(timeout=step.limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop()
            copier.join(timeout=5)
        return code

    def stop(self) -> None:
        """Ends the running step and all processes of its group."""
        if self.process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.process.pid, number)
                    self.process.wait(timeout=5)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
            self.process = None

    def table(self, listed: Sequence[Step]) -> str:
        lines = [f"{'step':<22} {'status':<10} {'seconds':>8} {'limit':>6}  note"]
        for step in listed:
            outcome = self.outcomes.get(step.name, Outcome(NOT_RUN))
            lines.append(
                f"{step.name:<22} {outcome.status:<10} {outcome.seconds:>8.1f} "
                f"{step.limit:>6.0f}  {outcome.note or self._last_line(step)}".rstrip()
            )
        return "\n".join(lines)

    def _last_line(self, step: Step) -> str:
        log = self.results / f"{step.name}.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1][:90] if lines else ""


def _copy(process: subprocess.Popen[bytes], log: Any) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            log.write(line)
            log.flush()
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a folder, made if missing")
    parser.add_argument("--device", default="cuda", help="of PyTorch's; default: cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether the steps run")
    parser.add_argument("--steps", help="only these, comma-separated")
    parser.add_argument("--again", default="", help="run these again, comma-separated, or 'failed'")
    args = parser.parse_args(arguments)
    args.results = args.results.resolve()
    args.kind = args.device.split(":")[0]
    args.on_gpu = args.kind == "cuda"
    args.listed = steps(args)
    known = [step.name for step in args.listed]
    for option in ("steps", "again"):
        given = getattr(args, option)
        unknown = [n for n in (given or "").split(",") if n and n not in (*known, "failed")]
        if unknown:
            parser.error(f"--{option} knows {', '.join(known)}; got {', '.join(unknown)}")
    if args.steps:
        args.listed = [step for step in args.listed if step.name in args.steps.split(",")]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if args.on_gpu and not torch.cuda.is_available():
        print(
            "gpu.py: PyTorch sees no GPU on this machine; --device cpu --quick is a dry run",
            file=sys.stderr,
        )
        return 2
    args.results.mkdir(parents=True, exist_ok=True)
    run = Run(args.results)
    again = args.again.split(",")
    if "failed" in again:
        again += [name for name, outcome in run.outcomes.items() if outcome.status == FAILED]
    run.forget(again)

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # The table is also printed if the job's time is up.
    signal.signal(signal.SIGTERM, interrupted)
    try:
        for step in args.listed:
            run.step(step)
    except KeyboardInterrupt:
        run.stop()
        print("\ninterrupted: the same command goes on", flush=True)
    print(f"\n{run.table(args.listed)}\n\nEverything is in {args.results}")
    found = [run.outcomes.get(step.name, Outcome(NOT_RUN)).status for step in args.listed]
    return 0 if all(status in (OK, LEFT_OUT) for status in found) else 1


if __name__ == "__main__":
    sys.exit(main())
