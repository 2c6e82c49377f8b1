"""Times atrous_conv2d and PyTorch's convolution (cuDNN, oneDNN) on DeepLab's layers.

Both run in turns in one process, and their results are compared. Speeds count only live
multiply-adds, which touch data and not padding: a library may skip padding, but gets no credit for
it. "atrousx" is backend="native". "auto" is the default backend. "other" is PyTorch in the other
memory format. The pass "inference" is the forward of the layer that atrousx.optimize makes, with
its weight packed beforehand.

    python benchmarks/bench_atrous.py --quick
    python benchmarks/bench_atrous.py --device cuda --batch 16 --dtype bfloat16 \\
        --memory-format channels_last --csv benchmarks/results/my_gpu/atrous.csv
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from layers import choose
from timing import DTYPES, CsvWriter, Peak, describe_machine
from torch import Tensor

import atrousx
from atrousx.backend.choice import Backend
from atrousx.doctor.layers import Layer
from atrousx.doctor.timing import Measured, fair_settings, interleaved
from atrousx.ops import atrous_conv2d

# Each pass, and the inputs (0: input, 1: weight) whose gradients it computes.
PASSES: dict[str, tuple[int, ...]] = {
    "forward": (),
    "inference": (),
    "backward": (0, 1),
    "grad_input": (0,),
    "grad_weight": (1,),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# The largest difference between two correct libraries, relative to the norm of the result.
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 5e-3, "float64": 1e-10}
# A smaller relative difference of times counts as equal.
NOISE = 0.03
Convolution = Callable[..., Tensor]


@dataclass(frozen=True)
class Result:
    """One line of the table: a layer's pass, timed with each implementation."""

    layer: Layer
    pass_name: str
    atrousx: Measured
    auto: Measured
    torch: Measured
    other: Measured | None  # not measured with --one-format
    operations: float
    peak: float
    error: float  # difference of the two results
    wrong: tuple[str, ...]  # which of "atrousx" and "torch" is wrong according to double precision

    @property
    def ratio(self) -> float:
        """How many times faster atrousx is. Below 1 it is slower."""
        return self.torch.median / self.atrousx.median

    @property
    def auto_ratio(self) -> float:
        return self.torch.median / self.auto.median

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1) <= NOISE:
            return "even"
        return "faster" if self.ratio > 1 else "SLOWER"

    def speed(self, measured: Measured) -> float:
        return self.operations / measured.median * 1e-9


def make_inference(
    backend: Backend, layer: Layer, tensors: Sequence[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the forward of the layer that optimize makes of an AtrousConv2d."""
    input, weight, _ = tensors
    conv = atrousx.AtrousConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
    )
    conv.weight.data = weight
    (fused,) = atrousx.optimize(torch.nn.Sequential(conv).eval()).children()

    def forward() -> tuple[Tensor, ...]:
        before: Any = atrousx.get_backend()
        atrousx.set_backend(backend)
        try:
            with torch.inference_mode():
                return (fused(input),)
        finally:
            atrousx.set_backend(before)

    return forward


def make_pass(
    convolution: Convolution, layer: Layer, pass_name: str, tensors: Sequence[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the function to time: a forward call, or only the gradients that the pass names.

    ``tensors`` are the input, the weight and the gradient of the output.
    """
    inputs = [tensor.detach() for tensor in tensors[:2]]
    wanted = [inputs[i].requires_grad_() for i in PASSES[pass_name]]

    def forward() -> Tensor:
        return convolution(
            *inputs, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
        )

    if not wanted:
        return lambda: (forward(),)
    # The graph is built once. autograd's backward runs many times on its saved tensors.
    output = forward()
    return lambda: torch.autograd.grad(output, wanted, tensors[2], retain_graph=True)


def make_tensors(layer: Layer, args: argparse.Namespace) -> list[Tensor]:
    """Returns input, weight and output gradient, in the requested dtype and memory format."""
    fan_in = layer.in_channels // layer.groups
    pixels = (layer.extent, layer.extent)
    shapes = (
        (args.batch, layer.in_channels, *pixels),
        (layer.out_channels, fan_in, layer.kernel, layer.kernel),
        (args.batch, layer.out_channels, *pixels),
    )
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": args.device, "dtype": DTYPES[args.dtype]}
    input, weight, gradient = (torch.randn(shape, **options) for shape in shapes)
    weight /= (fan_in * layer.kernel**2) ** 0.5
    return [t.to(memory_format=FORMATS[args.memory_format]) for t in (input, weight, gradient)]


def difference(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Returns the largest distance between two passes' results, relative to the expected norm."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        for a, b in zip(results, expected, strict=True)
    )


def measure(layer: Layer, pass_name: str, args: argparse.Namespace, peak: float) -> Result:
    tensors = make_tensors(layer, args)
    (elsewhere,) = (f for name, f in FORMATS.items() if name != args.memory_format)

    def own_pass(backend: Backend) -> Callable[[], tuple[Tensor, ...]]:
        if pass_name == "inference":
            return make_inference(backend, layer, tensors)
        return make_pass(partial(atrous_conv2d, backend=backend), layer, pass_name, tensors)

    functions = {
        "atrousx": own_pass("native"),
        "torch": make_pass(F.conv2d, layer, pass_name, tensors),
    }
    if not args.one_format:
        others = [t.contiguous(memory_format=elsewhere) for t in tensors]
        functions["other"] = make_pass(F.conv2d, layer, pass_name, others)
    if args.device == "cpu":  # on a GPU "auto" is always "native"
        functions["auto"] = own_pass("auto")
    results = {name: functions[name]() for name in ("atrousx", "torch")}
    tolerance, wrong = TOLERANCE[args.dtype], []
    error = difference(results["atrousx"], results["torch"])
    if not error <= tolerance:
        # Either library may have a bug. A result in double precision shows which one is wrong.
        doubles = [tensor.double() for tensor in tensors]
        exact = make_pass(F.conv2d, layer, pass_name, doubles)()
        wrong = [name for name in results if not difference(results[name], exact) <= tolerance]
    timed = interleaved(
        functions, torch.device(args.device), args.seconds, least_rounds=1 if args.quick else 3
    )
    operations = layer.live_operations * args.batch * max(1, len(PASSES[pass_name]))
    timed.setdefault("auto", timed["atrousx"])
    return Result(
        layer,
        pass_name,
        timed["atrousx"],
        timed["auto"],
        timed["torch"],
        timed.get("other"),
        operations,
        peak,
        error,
        tuple(wrong),
    )


def csv_row(machine: dict[str, Any], args: argparse.Namespace, result: Result) -> dict[str, Any]:
    row = {**machine, "dtype": args.dtype, "memory_format": args.memory_format}
    row |= {"batch": args.batch, **asdict(result.layer), "pass": result.pass_name}
    row |= {
        "live_fraction": round(result.layer.live_fraction, 4),
        "atrousx_ms": round(result.atrousx.median * 1e3, 5),
        "torch_ms": round(result.torch.median * 1e3, 5),
        "atrousx_fastest_ms": round(result.atrousx.fastest * 1e3, 5),
        "torch_fastest_ms": round(result.torch.fastest * 1e3, 5),
        "ratio": round(result.ratio, 4),
        "auto_ms": round(result.auto.median * 1e3, 5),
        "auto_ratio": round(result.auto_ratio, 4),
        "torch_other_format_ms": round(result.other.median * 1e3, 5) if result.other else "",
        "atrousx_live_gflops": round(result.speed(result.atrousx), 2),
        "torch_live_gflops": round(result.speed(result.torch), 2),
        "peak_gflops": round(result.peak, 1),
        "atrousx_of_peak": round(result.speed(result.atrousx) / result.peak, 4),
        "rounds": len(result.atrousx.samples),
        "difference": f"{result.error:.1e}",
        "wrong": " ".join(result.wrong),
    }
    return row


HEADER = (
    f"{'layer':<18} {'pass':<11} {'live':>4} | "
    f"{'atrousx ms':>10} {'auto':>10} {'torch':>10} {'other':>10} | "
    f"{'ratio':>6} {'auto':>6}        | "
    f"{'atrousx GF/s':>12} {'of peak':>7} {'torch':>9} {'of peak':>7}"
)


def table_row(result: Result) -> str:
    own_speed, torch_speed = result.speed(result.atrousx), result.speed(result.torch)
    times = (result.atrousx, result.auto, result.torch, result.other)
    return (
        f"{result.layer.name:<18} {result.pass_name:<11} {result.layer.live_fraction:>4.0%} | "
        + " ".join(f"{time.median * 1e3 if time else math.nan:>10.3f}" for time in times)
        + f" | {result.ratio:>5.2f}x {result.auto_ratio:>5.2f}x {result.verdict:<6} | "
        f"{own_speed:>12.1f} {own_speed / result.peak:>7.1%} "
        f"{torch_speed:>9.1f} {torch_speed / result.peak:>7.1%}"
        + (f"  WRONG RESULT: {', '.join(result.wrong)}" if result.wrong else "")
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous")
    parser.add_argument("--batch", type=int, default=1, help="images; default: 1")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--layers", metavar="NAME,...", help="only layers whose name holds one")
    parser.add_argument(
        "--passes",
        type=lambda text: text.split(","),
        default=["forward", "backward"],
        help=f"comma-separated, of {', '.join(PASSES)}; default: forward,backward",
    )
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument("--quick", action="store_true", help="a short list, under a minute")
    lists.add_argument(
        "--sweep", action="store_true", help="one layer at many rates: what plot_rates.py draws"
    )
    parser.add_argument("--seconds", type=float, help="time for one line; default: 3, quick: 0.7")
    parser.add_argument("--one-format", action="store_true", help="leave the column 'other' empty")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(arguments)
    args.list = "quick" if args.quick else "sweep" if args.sweep else "whole"
    args.seconds = args.seconds or (0.7 if args.quick else 3.0)
    if unknown := set(args.passes) - set(PASSES):
        parser.error(f"--passes knows {', '.join(PASSES)}, not {', '.join(sorted(unknown))}")
    if args.device == "cuda" and not gpu:
        parser.error("--device cuda: PyTorch sees no GPU here")
    if args.dtype == "tf32" and args.device == "cpu":
        parser.error("--dtype tf32 is a precision of GPUs")
    if not choose(args.list, args.layers):
        parser.error(f"--layers {args.layers}: no layer's name holds that")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(torch.device(args.device))
    writer = CsvWriter(args.csv) if args.csv else None
    verdicts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    with fair_settings(args.dtype):
        peak = Peak(DTYPES[args.dtype], torch.device(args.device))
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value != ""))
        print(
            f"{args.dtype}, {args.memory_format}, batch {args.batch}; "
            f"peak ({peak.measured_by}): {peak.gflops:.0f} GFLOP/s\n\n"
            f"{HEADER}\n{'-' * len(HEADER)}"
        )
        for layer in choose(args.list, args.layers):
            for pass_name in args.passes:
                result = measure(layer, pass_name, args, peak.again())
                print(table_row(result), flush=True)
                verdicts[result.verdict] += 1
                wrong.update(result.wrong)
                if writer:
                    writer.write(csv_row(machine, args, result))
    print(
        f"\nratio: PyTorch's time divided by atrousx's. Of {verdicts.total()} lines atrousx is "
        f"faster on {verdicts['faster']}, even (within {NOISE:.0%}) on {verdicts['even']}, "
        f"slower on {verdicts['SLOWER']}. Peak, the best of the run: {peak.gflops:.0f} GFLOP/s."
    )
    for name, lines in wrong.items():
        print(f"On {lines} of them the result of {name} is wrong, by double precision.")
    return 1 if wrong["atrousx"] else 0


if __name__ == "__main__":
    sys.exit(main())
