"""Measures the CPU's convolutions and PyTorch's, and fits the limits of "auto" to the times.

    python benchmarks/tune.py avx2 --minutes 15 --csv limits-avx2.csv    # measure, then fit
    python benchmarks/tune.py avx2 --fit limits-avx2.csv                 # fit again, without timing

Both commands print the limits; --write stores them in atrousx/backend/limits. If the instruction
set is below the CPU's, it is measured in a separate process. There atrousx's kernels, oneDNN and
ATen are all restricted to it.

1. The geometries are DeepLab's layers and random ones. The next random geometry is drawn for the
   line of the limits (kind; dtype and memory format; use) with the fewest measurements. Winograd
   geometries are excluded, because the rule does not apply to them.
2. Both implementations compute in turns. The fastest round counts, so that a busy moment does not
   matter.
3. A line's limit is a share of live multiply-adds: PyTorch computes the geometries above it, and
   atrousx's kernels all others. The limit minimises the sum, over the geometries, of log(time /
   time of the faster one). PyTorch's times are increased by 5 %: PyTorch must win by that much. Of
   equal limits the greatest is taken. A limit lies in the middle between two geometries.
4. If one implementation was four times as fast in each of the first three geometries, the line is
   not measured further. PyTorch has no own kernels for some dtypes, and then takes seconds.
5. A line of fewer than three measurements keeps the limit of avx512. The bounds between few and
   many are also those of avx512.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import CsvWriter, describe_machine
from torch import Tensor

import atrousx
from atrousx._library import core
from atrousx.backend import algorithm, rule
from atrousx.backend.rule import FOLDER, INFERS, PACKED, PACKED_RELU, TRAINS, Limits
from atrousx.backend.trial import TORCH_MUST_GAIN
from atrousx.doctor.layers import LAYERS
from atrousx.doctor.timing import interleaved
from atrousx.ops import atrous_conv2d

Line = tuple[str, str, str]
CAPS: dict[str, dict[str, str]] = {
    "avx512": {},
    "avx2": {
        "ATROUSX_CPU": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
USES = (TRAINS, INFERS, PACKED, PACKED_RELU)
# The most multiply-adds, with padding: of a random geometry, of a layer, of a depthwise geometry.
MOST_PRODUCTS, MOST_OF_A_LAYER, MOST_OF_DEPTHWISE = 4e8, 1e10, 1e7
MACHINE = ("date", "atrousx", "machine", "torch", "threads")
LEAST_MEASUREMENTS = 3
CLEAR = 4.0
DRAWS = 300  # random geometries, of which the most needed is measured
ALWAYS, NEVER = 0.0, math.inf


@dataclass(frozen=True)
class Conv:
    """A convolution whose padding keeps the size, except for its stride."""

    channels: int
    outputs: int
    kernel: int
    dilation: int
    extent: int
    groups: int = 1
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    @property
    def products(self) -> float:
        taps = self.kernel**2 * self.channels // self.groups
        return self.outputs * taps * (self.extent / self.stride) ** 2

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        weight = (self.outputs, self.channels // self.groups, self.kernel, self.kernel)
        return (1, self.channels, self.extent, self.extent), weight


def draw(chance: random.Random) -> Conv:
    """Draws a random convolution: a product, in groups, depthwise, or with a channel multiplier."""
    kernel = chance.choice((1, 2, 3, 3, 3, 5, 7))
    dilation = chance.choice((1, 1, 2, 2, 3, 4, 6, 12, 18))
    extent = chance.choice((9, 17, 25, 33, 41, 49, 65))
    stride = chance.choice((1, 1, 1, 2))
    width, made = (round(2 ** chance.uniform(2, 11)) for _ in range(2))
    groups = 1
    kind = chance.choice(("product", "groups", "depthwise", "depthwise", "multiplier"))
    if kind == "groups":
        groups = chance.choice((2, 4, 8, 32))
        width, made = width * groups, max(1, made // groups) * groups
    elif kind != "product":
        groups = width
        made = width * (chance.choice((2, 4)) if kind == "multiplier" else 1)
    return Conv(width, made, kernel, dilation, extent, groups, stride)


def known() -> Iterator[Conv]:
    for layer in LAYERS:
        sizes = (layer.in_channels, layer.out_channels, layer.kernel, layer.dilation, layer.extent)
        conv = Conv(*sizes, layer.groups)
        if conv.products <= MOST_OF_A_LAYER:
            yield conv


def line_of(
    conv: Conv, layout: str, dtype: str, use: str, bounds: dict[str, int]
) -> tuple[Line, float] | None:
    """Returns the limits' line and the live share, or None if the rule does not apply."""
    size, weight = map(torch.Size, conv.sizes)
    if min(conv.sizes[0][2:]) + 2 * conv.padding <= conv.dilation * (conv.kernel - 1):
        return None
    step, dilation = (conv.stride, conv.stride), (conv.dilation, conv.dilation)
    geometry = (size, weight, step, (conv.padding,) * 4, dilation)
    last = layout == "channels_last"
    # optimize keeps the filters of products in channels_last.
    if use in (PACKED, PACKED_RELU) and weight[1] > 1 and not last:
        return None
    known = (DTYPES[dtype], last, geometry, use != INFERS, atrousx.get_precision())
    found = algorithm.of_cpu_forward(*known)
    if found.points:
        return None
    features = rule.features_of(DTYPES[dtype], last, geometry, use, found.name)
    line = rule.line_of(features, bounds)
    asked = line[2] == use and features.live > 0
    return (line, features.live) if asked else None


def make_calls(conv: Conv, layout: str, dtype: str, use: str) -> dict[str, Callable[[], Any]]:
    """Returns the same work by atrousx's kernels and by PyTorch's convolution."""
    torch.manual_seed(0)
    sizes = conv.sizes
    x, w = (torch.randn(size).to(DTYPES[dtype], memory_format=FORMATS[layout]) for size in sizes)
    w /= math.sqrt(math.prod(sizes[1][1:]))
    if use in (PACKED, PACKED_RELU):
        return _make_packed(conv, x, w, use)
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def native() -> Tensor:
        return atrous_conv2d(x, w, None, *options, backend="native")

    def by_torch() -> Tensor:
        return F.conv2d(x, w, None, *options)

    if use == INFERS:
        return {"native": native, "torch": by_torch}
    x.requires_grad_()
    w.requires_grad_()
    gradient = torch.randn_like(by_torch())

    def trained(forward: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(forward(), (x, w), gradient)

    return {"native": trained(native), "torch": trained(by_torch)}


def _make_packed(conv: Conv, x: Tensor, w: Tensor, use: str) -> dict[str, Callable[[], Any]]:
    layer = atrousx.AtrousConv2d(
        conv.channels,
        conv.outputs,
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=False,
    )
    layer.weight.data = w
    relu = [torch.nn.ReLU()] if use == PACKED_RELU else []
    fused = atrousx.optimize(torch.nn.Sequential(layer, *relu).eval())[0]  # type: ignore[index]

    def by(backend: atrousx.backend.choice.Backend) -> Callable[[], Any]:
        def call() -> Any:
            before = atrousx.get_backend()
            atrousx.set_backend(backend)
            try:
                with torch.inference_mode():
                    return fused(x)
            finally:
                atrousx.set_backend(before)

        return call

    return {"native": by("native"), "torch": by("torch")}


def measure(conv: Conv, line: Line, seconds: float) -> tuple[float, float]:
    """Returns the seconds of a call by atrousx's kernels and by PyTorch's convolution."""
    _, columns, use = line
    dtype, layout = columns.split()
    calls = make_calls(conv, layout, dtype, use)
    timed = interleaved(calls, torch.device("cpu"), seconds, least_rounds=3)
    return timed["native"].fastest, timed["torch"].fastest


class Survey:
    """Measures until the time is up. The lines with the fewest measurements come first."""

    def __init__(self, instruction_set: str, file: Path, seconds: float) -> None:
        self.bounds = start().bounds
        self.seen: dict[Line, list[float]] = defaultdict(list)  # PyTorch's times over atrousx's
        self.writer = CsvWriter(file)
        machine = describe_machine(torch.device("cpu"))
        self.head = {"instruction_set": instruction_set} | {name: machine[name] for name in MACHINE}
        self.seconds = seconds

    def take(self, conv: Conv, line: Line, live: float) -> None:
        native, by_torch = measure(conv, line, self.seconds)
        self.seen[line].append(by_torch / native)
        kind, columns, use = line
        row = {**self.head, **vars(conv), "kind": kind, "columns": columns, "use": use}
        row |= {"live": round(live, 4), "native_ms": f"{native * 1e3:.5g}"}
        self.writer.write({**row, "torch_ms": f"{by_torch * 1e3:.5g}"})

    def run(self, minutes: float) -> None:
        begin = time.monotonic()
        chance = random.Random(0)
        columns = [(dtype, layout, use) for dtype in DTYPES for layout in FORMATS for use in USES]
        # In bfloat16 PyTorch may take minutes for one layer.
        layers = [(conv, *c) for conv in known() for c in columns if c[0] == "float32"]
        for conv, dtype, layout, use in chance.sample(layers, len(layers)):
            # Layers take at most half of the time.
            if time.monotonic() > begin + 30 * minutes:
                break
            found = line_of(conv, layout, dtype, use, self.bounds)
            if found is not None and not self._is_clear(found[0]):
                self.take(conv, *found)
        while time.monotonic() < begin + 60 * minutes:
            self.take(*self._needed(chance, columns))

    def _is_clear(self, line: Line) -> bool:
        ratios = self.seen[line]
        enough = len(ratios) >= LEAST_MEASUREMENTS
        return enough and (min(ratios) > CLEAR or max(ratios) < 1 / CLEAR)

    def _needed(
        self, chance: random.Random, columns: list[tuple[str, str, str]]
    ) -> tuple[Conv, Line, float]:
        """Draws many random geometries. Returns one whose line has the fewest measurements."""
        drawn: list[tuple[Conv, Line, float]] = []
        for _ in range(DRAWS):
            conv = draw(chance)
            dtype, layout, use = chance.choice(columns)
            if conv.products > (MOST_OF_DEPTHWISE if conv.groups > 1 else MOST_PRODUCTS):
                continue
            found = line_of(conv, layout, dtype, use, self.bounds)
            if found is not None and not self._is_clear(found[0]):
                drawn.append((conv, *found))
        return min(drawn, key=lambda one: len(self.seen[one[1]]))


def start() -> Limits:
    """Returns the limits from which a fit starts."""
    limits = rule.limits_of("avx512")
    assert limits is not None
    return limits


def fit_line(points: Iterable[tuple[float, float]]) -> float:
    """Returns the limit of a line from pairs (live share, log of PyTorch's time over atrousx's)."""
    ordered = sorted(points)
    gains = [ratio + math.log(TORCH_MUST_GAIN) for _, ratio in ordered]  # of atrousx's kernels
    # lost[i] is the loss if atrousx's kernels compute the first i geometries and PyTorch the
    # others.
    lost = [sum(max(0.0, gain) for gain in gains)]
    for gain in gains:
        lost.append(lost[-1] - gain)
    # A limit cannot separate geometries with the same share.
    parts = [i for i in range(1, len(ordered)) if ordered[i - 1][0] < ordered[i][0]]
    places = [0, *parts, len(ordered)]
    least = min(lost[i] for i in places)
    at = max(i for i in places if math.isclose(lost[i], least, abs_tol=1e-9))
    if at == len(ordered):
        return NEVER
    return ALWAYS if at == 0 else round((ordered[at - 1][0] + ordered[at][0]) / 2, 3)


def fit(rows: Iterable[dict[str, str]], begin: Limits) -> Limits:
    points: dict[Line, list[tuple[float, float]]] = defaultdict(list)
    measured: dict[str, Any] = {}
    for count, row in enumerate(rows, start=1):
        ratio = math.log(float(row["torch_ms"]) / float(row["native_ms"]))
        points[row["kind"], row["columns"], row["use"]].append((float(row["live"]), ratio))
        measured = {
            "cpu": row["machine"],
            "threads": int(row["threads"]),
            **{name: row[name] for name in ("torch", "atrousx", "date")},
            "geometries": count,
        }
    limits = {}
    for kind in begin.torch_from:
        columns = {}
        for column in (f"{dtype} {layout}" for dtype in DTYPES for layout in FORMATS):
            uses = {}
            for use in USES if kind.startswith("depthwise") else USES[:-1]:
                line = (kind, column, use)
                few = len(points[line]) < LEAST_MEASUREMENTS
                limit = rule.limit_at(begin, line) if few else fit_line(points[line])
                uses[use] = None if limit == NEVER else limit
            columns[column] = _shortened(uses)
        limits[kind] = _shortened(columns)
    return Limits(measured, begin.bounds, limits)


def _shortened(table: dict[str, Any]) -> Any:
    """Replaces equal values by one value."""
    values = list(table.values())
    return values[0] if all(value == values[0] for value in values) else table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instruction_set", choices=CAPS)
    parser.add_argument("--minutes", type=float, default=15, help="of measuring; default: 15")
    parser.add_argument("--seconds", type=float, default=0.1, help="for a geometry; default: 0.1")
    parser.add_argument("--csv", type=Path, help="append every measurement to this file")
    parser.add_argument("--fit", type=Path, metavar="CSV", help="measure nothing, fit to this file")
    parser.add_argument("--write", action="store_true", help="store the limits in the package")
    args = parser.parse_args(arguments)
    if args.fit is None:
        if args.csv is None:
            parser.error("--csv FILE must say where measurements go")
        caps = CAPS[args.instruction_set]
        if any(os.environ.get(name) != value for name, value in caps.items()):
            given = sys.argv[1:] if arguments is None else arguments
            command = [sys.executable, __file__, *given]
            return subprocess.run(command, env={**os.environ, **caps}).returncode
        if core.cpu_isa != args.instruction_set:
            parser.error(f"this CPU's kernels are of {core.cpu_isa}")
        Survey(args.instruction_set, args.csv, args.seconds).run(args.minutes)
    with (args.fit or args.csv).open(newline="") as file:
        limits = fit(csv.DictReader(file), start())
    text = json.dumps(limits._asdict(), indent=2) + "\n"
    if args.write:
        (FOLDER / f"{args.instruction_set}.json").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
