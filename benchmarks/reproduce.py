"""Repeats comparisons of the DeepLab papers: trains and evaluates every variant of a table.

The data are generated scenes. Each variant is trained with several seeds. Networks are narrow and
scenes small, so that two cores are enough.
docs/reproduction.md says what is compared with what.

    python benchmarks/reproduce.py v1 --out FOLDER --csv FILE
    python benchmarks/reproduce.py v3 --out FOLDER --full      # whole networks, for a GPU
    python benchmarks/reproduce.py v1 --out FOLDER --quick     # does every variant run?

A run that was stopped goes on with the same command. Tables share their runs in the same folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from reproduction import runs, summary
from reproduction.budgets import CORES, FULL, QUICK
from reproduction.networks import network
from reproduction.runs import CLASSES, Result, Setup, make_scenes, pretrain
from reproduction.tables import TABLES, Variant
from timing import CsvWriter, describe_machine

import atrousx
from atrousx.data import DatasetError
from atrousx.doctor.timing import interleaved
from atrousx.training import CheckpointError, Stopped, TrainingError

Row = dict[str, Any]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of all runs")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--full", action="store_true", help="whole networks, for a GPU")
    sizes.add_argument("--quick", action="store_true", help="two steps of tiny networks")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of a variant; 3")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time; default: one a core, on a GPU one"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not cuda:
        parser.error("--device cuda: PyTorch sees no GPU here")
    if args.jobs is None:
        args.jobs = 1 if args.device == "cuda" else torch.get_num_threads()
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def setup_of(args: argparse.Namespace) -> Setup:
    budget = FULL if args.full else QUICK if args.quick else CORES
    threads = max(1, torch.get_num_threads() // args.jobs)
    # A narrow network on one thread waits little for its images; a GPU needs many workers.
    workers = (os.cpu_count() or 1) if args.device == "cuda" else 0
    return Setup(args.out.resolve(), budget, args.device, threads, workers)


def in_processes(jobs: int, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """Yields the results of calls in their order; ``jobs`` of them run at a time."""
    if jobs == 1:
        yield from (call() for call in calls)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_parent) as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            # Ctrl+C reaches all processes, but kill -INT only this one.
            for worker in active_children():
                worker.terminate()  # a training saves its state first
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Stops this process if its parent was killed: the next command trains in the same folders."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # a training saves its state first

    threading.Thread(target=watch, daemon=True).start()


def train_all(
    setup: Setup, variants: Sequence[Variant], seeds: int, jobs: int
) -> dict[str, list[Result]]:
    """Returns the results of each variant, one for each seed."""
    make_scenes(setup)
    if any(variant.pretrained for variant in variants):
        for seed, _ in enumerate(
            in_processes(jobs, [partial(pretrain, setup, seed) for seed in range(seeds)])
        ):
            print(f"pretraining, seed {seed}: done", flush=True)
    # Seeds first, so that a run that is stopped has compared all variants.
    cases = [(variant, seed) for seed in range(seeds) for variant in variants]
    results: dict[str, list[Result]] = {variant.name: [] for variant in variants}
    calls = [partial(runs.run, setup, *case) for case in cases]
    for (variant, seed), result in zip(cases, in_processes(jobs, calls), strict=True):
        results[variant.name].append(result)
        found = ", ".join(f"{k} {100 * v['mean_iou']:.1f} %" for k, v in result["views"].items())
        print(f"{variant.name}, seed {seed}: {found} ({result['seconds']} s)", flush=True)
    return results


def images_per_second(setup: Setup, variants: Sequence[Variant]) -> dict[str, float]:
    """Times a training step of every variant, all in turns in this process."""
    device = torch.device(setup.device)
    steps = {variant.name: _step(variant, device) for variant in variants}
    before = atrousx.get_backend()
    atrousx.set_backend(variants[0].recipe.backend)
    timed = interleaved(steps, device, seconds=0, least_rounds=5)
    atrousx.set_backend(before)
    batch = variants[0].recipe.batch_size
    return {name: batch / found.median for name, found in timed.items()}


def _step(variant: Variant, device: torch.device) -> Callable[[], None]:
    recipe = variant.recipe
    model = network(variant, recipe, CLASSES, None).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=recipe.momentum)
    images = torch.randn(recipe.batch_size, 3, *recipe.crop, device=device)
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (recipe.batch_size, *recipe.crop), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images, labels).backward()
        optimizer.step()

    return step


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    setup = setup_of(args)
    variants = TABLES[args.table](setup.budget)
    try:
        results = train_all(setup, variants, args.seeds, args.jobs)
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command goes on from there")
        return 128 + signal.SIGINT
    except (OSError, DatasetError, CheckpointError, TrainingError) as error:
        raise SystemExit(f"--out: {error}") from error
    speeds = images_per_second(setup, variants) if args.table != "trimap" else {}
    machine: Row = describe_machine(torch.device(args.device))
    for variant in variants:
        found = results[variant.name]
        if args.table == "trimap":
            rows = summary.trimap_rows(variant, found)
        else:
            rows = summary.rows(variant, found, speeds[variant.name])
        for row in rows:
            print("  ".join(f"{value}" for value in row.values()))
            if args.csv is not None:
                CsvWriter(args.csv).write({**machine, "table": args.table, **row})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
