"""Times the upsampling operators and PyTorch's: plain, argmax, cross-entropy, softmax sums.

All run in turns in one process, together with a copy of as many bytes as the operator must read and
write once. The operator's share of the copy's speed shows how much can still be gained.

    python benchmarks/bench_upsample.py [--operators bilinear,argmax] [--quick]
    python benchmarks/bench_upsample.py --dtype bfloat16 --memory-format channels_last --csv FILE
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import DTYPES, CsvWriter, describe_machine, peak_memory
from torch import Tensor

from atrousx import ops
from atrousx.doctor.timing import Measured, interleaved

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# name: (N, C, H, W), (OH, OW). Up and down, odd sizes, one channel and many, images and logits.
SHAPES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int]]] = {
    "voc_x8": ((1, 21, 65, 65), (513, 513)),
    "cityscapes_x8": ((1, 19, 129, 257), (1024, 2048)),
    "ade_x8": ((1, 150, 64, 64), (512, 512)),
    "one_channel": ((1, 1, 65, 65), (513, 513)),
    "double": ((1, 64, 128, 128), (256, 256)),
    "odd": ((2, 7, 37, 53), (101, 211)),
    "pooled": ((4, 256, 1, 1), (65, 65)),
    "image_0.5": ((1, 3, 1024, 2048), (512, 1024)),
    "image_0.75": ((1, 3, 1024, 2048), (768, 1536)),
    "image_1.5": ((4, 3, 256, 256), (384, 384)),
    "half": ((1, 64, 256, 256), (128, 128)),
    "quarter": ((1, 21, 513, 513), (129, 129)),
    "same": ((1, 21, 257, 257), (257, 257)),
    "tiny": ((1, 8, 16, 16), (32, 32)),
}
QUICK = ("voc_x8", "one_channel", "odd", "half")
# The largest distance of a result from float64's, relative to its norm; for labels, the share that
# differs. Twice PyTorch's own error is also accepted: float32 positions of distant samples are
# inexact. "tf32" is the same as float32 here, because no operator uses tensor cores.
TOLERANCE = {"float32": 1e-5, "tf32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
NOISE = 0.03  # a smaller relative difference counts as equal
Function = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One line: an operator's work in each library, and the bytes that must be moved."""

    operator: str
    pass_name: str
    atrousx: Function
    torch: Function
    exact: Function
    bytes: int


def size_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradient_of(call: Callable[[Tensor], Tensor], inputs: Tensor, grad: Tensor) -> Function:
    """Returns only the backward. The graph is built once."""
    leaf = inputs.detach().requires_grad_()
    output = call(leaf)
    return lambda: torch.autograd.grad(output, leaf, grad, retain_graph=True)[0]


def training_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Function:
    leaf = logits.detach().requires_grad_()
    return lambda: torch.autograd.grad(loss(leaf), leaf)[0]


def cases(operators: list[str], logits: Tensor, size: tuple[int, int]) -> list[Case]:
    def upsampled(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bilinear")

    def atrousx_upsampled(x: Tensor) -> Tensor:
        return ops.upsample_bilinear2d(x, size)

    found, double = [], logits.double()
    labels = torch.randint(logits.shape[1], (logits.shape[0], *size), device=logits.device)
    if "bilinear" in operators:
        grad = torch.randn_like(upsampled(logits))
        moved = size_of(logits, grad)
        found += [
            Case("bilinear", "forward", _bind(atrousx_upsampled, logits), _bind(upsampled, logits),
                 _bind(upsampled, double), moved),
            Case("bilinear", "backward", gradient_of(atrousx_upsampled, logits, grad),
                 gradient_of(upsampled, logits, grad),
                 gradient_of(upsampled, double, grad.double()), moved),
        ]  # fmt: skip
    if "argmax" in operators and logits.shape[1] > 1:

        def atrousx_labels() -> Any:  # an option decides whether probabilities are returned, too
            return ops.upsample_argmax(logits, size)

        found.append(
            Case("argmax", "forward", atrousx_labels,
                 lambda: upsampled(logits).argmax(1), lambda: upsampled(double).argmax(1),
                 size_of(logits, labels))
        )  # fmt: skip
    if "cross_entropy" in operators and logits.shape[1] > 1:

        def atrousx_loss(x: Tensor) -> Tensor:
            return ops.upsample_cross_entropy(x, labels)

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(upsampled(x), labels)

        moved = size_of(logits, labels)
        found += [
            Case("cross_entropy", "forward", _bind(atrousx_loss, logits), _bind(loss, logits),
                 _bind(loss, double), moved),
            Case("cross_entropy", "training", training_of(atrousx_loss, logits),
                 training_of(loss, logits), training_of(loss, double), moved + size_of(logits)),
        ]  # fmt: skip
    if "softmax_add" in operators and logits.shape[1] > 1:
        found.append(softmax_add(logits, size))
    return found


def softmax_add(logits: Tensor, size: tuple[int, int]) -> Case:
    """One mirrored image's term of the mean. Sums grow with every call, so the first ones are
    compared."""
    layout = (
        torch.channels_last
        if logits.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )

    def added_by(
        add: Callable[[Tensor, Tensor], Tensor], x: Tensor, dtype: torch.dtype
    ) -> Function:
        total = torch.zeros(*x.shape[:2], *size, dtype=dtype, device=x.device)
        total = total.to(memory_format=layout)
        return lambda: add(total, x)

    def by_atrousx(total: Tensor, x: Tensor) -> Tensor:
        return ops.upsample_softmax_add_(total, x, 0.5, flip=True)

    def by_torch(total: Tensor, x: Tensor) -> Tensor:
        upsampled = F.interpolate(x.flip(-1), size, mode="bilinear")
        return total.add_(upsampled.softmax(1), alpha=0.5)

    computed = torch.promote_types(logits.dtype, torch.float32)
    values = logits.shape[0] * logits.shape[1] * size[0] * size[1]
    return Case(
        "softmax_add", "forward",
        added_by(by_atrousx, logits, computed), added_by(by_torch, logits, computed),
        added_by(by_torch, logits.double(), torch.float64),
        size_of(logits) + 2 * values * computed.itemsize,
    )  # fmt: skip


def _bind(function: Callable[[Tensor], Tensor], argument: Tensor) -> Function:
    return lambda: function(argument)


def error_of(result: Tensor, exact: Tensor) -> float:
    if not result.is_floating_point():
        return float((result != exact).double().mean())
    return float((result.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@dataclass(frozen=True)
class Result:
    case: Case
    timed: dict[str, Measured]
    memory: dict[str, float]
    error: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times faster atrousx is. Below 1 it is slower."""
        return self.timed["torch"].median / self.timed["atrousx"].median

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1) <= NOISE:
            return "even"
        return "faster" if self.ratio > 1 else "SLOWER"

    def share(self, name: str) -> float:
        """The share of the copy's speed."""
        return self.timed["copy"].median / self.timed[name].median


def measure(case: Case, device: torch.device, seconds: float) -> Result:
    exact = case.exact()
    functions = {"atrousx": case.atrousx, "torch": case.torch}
    error = {name: error_of(function(), exact) for name, function in functions.items()}
    del exact
    memory = {name: peak_memory(function, device) for name, function in functions.items()}
    source = torch.zeros(case.bytes // 2, dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    timed = interleaved({**functions, "copy": lambda: target.copy_(source)}, device, seconds)
    return Result(case, timed, memory, error)


def csv_row(machine: dict[str, Any], args: argparse.Namespace, name: str, result: Result) -> Any:
    (n, c, h, w), (oh, ow) = SHAPES[name]
    row = {**machine, "dtype": args.dtype, "memory_format": args.memory_format, "shape": name}
    row |= {"n": n * args.batch, "c": c, "h": h, "w": w, "oh": oh, "ow": ow}
    row |= {"operator": result.case.operator, "pass": result.case.pass_name}
    for who in ("atrousx", "torch", "copy"):
        row[f"{who}_ms"] = round(result.timed[who].median * 1e3, 5)
        row[f"{who}_fastest_ms"] = round(result.timed[who].fastest * 1e3, 5)
    row |= {"ratio": round(result.ratio, 4), "bytes": result.case.bytes}
    for who in ("atrousx", "torch"):
        row[f"{who}_of_copy"] = round(result.share(who), 4)
        row[f"{who}_peak_mib"] = round(result.memory[who], 2)
        row[f"{who}_error"] = f"{result.error[who]:.1e}"
    return row | {"rounds": len(result.timed["atrousx"].samples)}


HEADER = (
    f"{'shape':<14} {'operator':<13} {'pass':<8} | {'atrousx ms':>10} {'torch ms':>9} | "
    f"{'ratio':>6}        | {'of copy':>7} {'torch':>6} | {'peak MiB':>8} {'torch':>8}"
)


def table_row(name: str, result: Result, wrong: bool) -> str:
    return (
        f"{name:<14} {result.case.operator:<13} {result.case.pass_name:<8} | "
        f"{result.timed['atrousx'].median * 1e3:>10.3f} "
        f"{result.timed['torch'].median * 1e3:>9.3f} | "
        f"{result.ratio:>5.2f}x {result.verdict:<6} | {result.share('atrousx'):>7.0%} "
        f"{result.share('torch'):>6.0%} | {result.memory['atrousx']:>8.1f} "
        f"{result.memory['torch']:>8.1f}" + ("  WRONG RESULT" if wrong else "")
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    known = ["bilinear", "argmax", "cross_entropy", "softmax_add"]
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous")
    parser.add_argument("--operators", type=lambda text: text.split(","), default=known)
    parser.add_argument("--batch", type=int, default=1, help="times the shape's own; default: 1")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--shapes", metavar="NAME,...", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--quick", action="store_true", help="a short list")
    parser.add_argument("--seconds", type=float, default=1.0, help="for one line; default: 1")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(arguments)
    args.shapes = args.shapes.split(",") if args.shapes else list(QUICK if args.quick else SHAPES)
    if unknown := set(args.operators) - set(known):
        parser.error(f"--operators knows {', '.join(known)}, not {', '.join(sorted(unknown))}")
    if unknown := set(args.shapes) - set(SHAPES):
        parser.error(f"--shapes knows {', '.join(SHAPES)}, not {', '.join(sorted(unknown))}")
    if args.device == "cuda" and not gpu:
        parser.error("--device cuda: PyTorch sees no GPU here")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    device = torch.device(args.device)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    machine = describe_machine(device)
    writer = CsvWriter(args.csv) if args.csv else None
    verdicts: Counter[str] = Counter()
    wrong = 0
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value != ""))
    print(f"{args.dtype}, {args.memory_format}\n\n{HEADER}\n{'-' * len(HEADER)}")
    for name in args.shapes:
        (n, *shape), size = SHAPES[name]
        torch.manual_seed(0)
        logits = torch.randn(n * args.batch, *shape, device=device).to(DTYPES[args.dtype])
        logits = logits.to(memory_format=FORMATS[args.memory_format])
        for case in cases(args.operators, logits, size):
            result = measure(case, device, args.seconds)
            allowed = max(TOLERANCE[args.dtype], 2 * result.error["torch"])
            failed = not result.error["atrousx"] <= allowed
            print(table_row(name, result, failed), flush=True)
            verdicts[result.verdict] += 1
            wrong += failed
            if writer:
                writer.write(csv_row(machine, args, name, result))
    torch.set_num_threads(before)
    print(
        f"\nratio: PyTorch's time divided by atrousx's. Of {verdicts.total()} lines atrousx is "
        f"faster on {verdicts['faster']}, even (within {NOISE:.0%}) on {verdicts['even']}, slower "
        f"on {verdicts['SLOWER']}. Peak: memory that one call adds, its result included."
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
