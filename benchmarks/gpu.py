"""What `make gpu` runs on a machine with a GPU: tests, then compute-sanitizer, then benchmarks.

Nothing is built or installed: it uses the Python it is started with and the libraries that lie in
the source tree. CSV files land under benchmarks/results/<gpu>/. Every step runs whatever became of
the others; the exit status is 1 if any failed.

    python benchmarks/gpu.py [--steps tests,sanitizer,benchmarks]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# The sanitizer slows a kernel down a hundredfold: it sees the literal cases and odd strides only.
SANITIZED_TESTS = ["tests/ops", "-m", "cuda", "-k", "by_hand or any_strides or empty or any_number"]
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run(title: str, *command: str | Path) -> bool:
    print(f"\n== {title}", flush=True)
    return subprocess.run(list(command), cwd=ROOT).returncode == 0


def tests() -> bool:
    return run("tests", sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider")


def sanitizer() -> bool:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("\n== compute-sanitizer: not on the PATH, left out", flush=True)
        return False
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *SANITIZED_TESTS]
    results = []
    for name in SANITIZER_TOOLS:
        # PyTorch's allocator hands out parts of larger blocks, which hides overruns; without it
        # every tensor is an allocation of its own.
        command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--tool", name]
        results.append(run(f"compute-sanitizer {name}", *command, "--error-exitcode=1", *pytest))
    return all(results)


def benchmarks() -> bool:
    slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    directory = ROOT / "benchmarks" / "results" / slug
    directory.mkdir(parents=True, exist_ok=True)
    results = []
    for dtype in ("bfloat16", "tf32", "float32"):
        for memory_format in ("channels_last", "contiguous"):
            csv = directory / f"atrous_conv2d-{dtype}-{memory_format}.csv"
            script = [sys.executable, "benchmarks/bench_atrous.py", "--device", "cuda"]
            options = ["--dtype", dtype, "--memory-format", memory_format, "--csv", str(csv)]
            results.append(run(f"bench_atrous {dtype} {memory_format}", *script, *options))
            csv = directory / f"upsample-{dtype}-{memory_format}.csv"
            script[1], options[-1] = "benchmarks/bench_upsample.py", str(csv)
            options += ["--batch", "16"]
            results.append(run(f"bench_upsample {dtype} {memory_format}", *script, *options))
    script = [sys.executable, "benchmarks/bench_crf.py", "--device", "cuda"]
    results.append(run("bench_crf", *script, "--csv", str(directory / "dense_crf.csv")))
    return all(results)


STEPS = {"tests": tests, "sanitizer": sanitizer, "benchmarks": benchmarks}


def main() -> int:
    parser = argparse.ArgumentParser(description="Tests, sanitizer and benchmarks on the GPU.")
    parser.add_argument("--steps", default=",".join(STEPS), help="a comma-separated choice")
    names = parser.parse_args().steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--steps knows {', '.join(STEPS)}; got {', '.join(unknown)}")
    if not torch.cuda.is_available():
        print("gpu.py: this PyTorch sees no CUDA device", file=sys.stderr)
        return 2
    outcome = {name: STEPS[name]() for name in names}
    print("\n" + ", ".join(f"{name}: {'ok' if ok else 'FAILED'}" for name, ok in outcome.items()))
    return 0 if all(outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
