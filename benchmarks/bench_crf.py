"""Times the dense CRF on a photograph, beside pydensecrf: all-in, its stages, training, memory.

    python benchmarks/bench_crf.py [--threads 1,2] [--sizes 500x375x21,1024x512x19] [--csv FILE]

A call is ten iterations with sigmas 67/3 and 3, as the DeepLab papers' code uses it. pydensecrf
cannot be installed from PyPI on current Python (its generated C++ does not compile). Where it can
be imported, built from its source, it runs in turns with ours, and the results are compared. Else
its times of another day on such a machine are printed, and said to be that. So are those of MONAI's
CRF (C++ extension) and of crfasrnn_pytorch, which this script does not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from timing import CsvWriter, describe_machine, interleaved, peak_memory
from torch import Tensor

import atrousx
from atrousx.compat.pydensecrf import densecrf
from atrousx.nn.dense_crf import pixel_features
from atrousx.ops._mean_field import mean_field
from atrousx.ops._permutohedral_lattice import build_lattice

try:
    import pydensecrf.densecrf as their_densecrf
except ImportError:
    their_densecrf = None

ITERATIONS = 10
# Seconds of a whole call and MiB of memory, from another day on the machine type of results/: no
# measurements of this run.
RECORDED = {
    "500x375x21": {
        "pydensecrf": (0.77, 158),
        "MONAI": (3.0, None),
        "crfasrnn_pytorch": (2.2, None),
    },
    "1024x512x19": {
        "pydensecrf": (2.57, 377),
        "MONAI": (16, None),
        "crfasrnn_pytorch": (9.1, None),
    },
}
Stage = tuple[str, Callable[[], object]]


def make_input(size: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smooth random logits and scikit-image's photograph of a cup of coffee, resized."""
    width, height, labels = (int(part) for part in size.split("x"))
    photo = cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_AREA)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].to(device)
    coarse = 3 * torch.randn(1, labels, height // 8 + 1, width // 8 + 1, device=device)
    logits = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return logits.contiguous(), image


def compat_call(
    logits: Tensor, image: Tensor, library: Any = densecrf
) -> Callable[[], NDArray[np.float32]]:
    """The same through the pydensecrf interface, ours or theirs, arrays in and out."""
    labels, height, width = logits.shape[1:]
    unary = -logits.log_softmax(1)[0].reshape(labels, -1).cpu().numpy()
    rgb = np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())

    def call() -> NDArray[np.float32]:
        d = library.DenseCRF2D(width, height, labels)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(sxy=3, compat=3)
        d.addPairwiseBilateral(sxy=67, srgb=3, rgbim=rgb, compat=4)
        return np.asarray(d.inference(ITERATIONS))

    return call


def stages(logits: Tensor, image: Tensor) -> list[Stage]:
    """What is timed, by name; everything without gradients but the last two."""
    labels = logits.shape[1]
    crf = atrousx.DenseCRF(labels, iterations=ITERATIONS).to(logits.device)
    guide, flat = image.float(), logits.flatten(2)
    found: list[Stage] = [("all-in", lambda: crf(logits, image))]
    if logits.device.type == "cpu":
        found.append(("all-in, compat", compat_call(logits, image)))
        if their_densecrf is not None:
            found.append(("pydensecrf, all-in", compat_call(logits, image, their_densecrf)))
    terms = []
    for name, kernel, coloured in (
        ("gaussian", crf.gaussian, False),
        ("bilateral", crf.bilateral, True),
    ):
        features = pixel_features(guide, coloured)
        scaled = features / kernel.sigma(guide)[:, None]
        term = kernel.term(features, "symmetric")
        print(f"  {name}: {term.lattice.neighbours.shape[2]:,} vertices")
        found.append((f"lattice, {name}", lambda scaled=scaled: build_lattice(scaled)))
        one = [term]
        found.append((f"iterations, {name}", lambda one=one: mean_field(flat, one, ITERATIONS)))
        terms.append(term)
    found.append(("iterations, both", lambda: mean_field(flat, terms, ITERATIONS)))
    found.append(("iterations, no kernel", lambda: mean_field(flat, [], ITERATIONS)))
    return [(name, torch.no_grad()(call)) for name, call in found] + training(crf, logits, image)


def training(crf: atrousx.DenseCRF, logits: Tensor, image: Tensor) -> list[Stage]:
    def forward() -> Tensor:
        result: Tensor = crf(logits.detach().requires_grad_(), image)
        return result

    def both() -> object:
        inputs = logits.detach().requires_grad_()
        return torch.autograd.grad(crf(inputs, image).square().sum(), inputs)

    return [("forward for training", forward), ("forward + backward", both)]


def compare(logits: Tensor, image: Tensor) -> None:
    """Prints how far ours is from theirs, before either is timed."""
    theirs = compat_call(logits, image, their_densecrf)()
    with torch.no_grad():
        ours = atrousx.DenseCRF(len(theirs), iterations=ITERATIONS)(logits, image)
    for name, q in (
        ("DenseCRF", ours[0].flatten(1).numpy()),
        ("compat", compat_call(logits, image)()),
    ):
        labels = (q.argmax(0) != theirs.argmax(0)).mean()
        print(
            f"  {name} and pydensecrf: probabilities differ by {np.abs(q - theirs).max():.1e} at "
            f"most, labels on {100 * labels:.4f} % of pixels"
        )


def measure(size: str, args: argparse.Namespace, machine: dict[str, Any]) -> None:
    device = torch.device(args.device)
    print(f"\n{size}, {ITERATIONS} iterations, threads {machine['threads'] or 'of the GPU'}")
    writer = CsvWriter(args.csv) if args.csv else None
    logits, image = make_input(size, device)
    functions = dict(stages(logits, image))
    on_cpu = device.type == "cpu"
    if on_cpu and their_densecrf is not None:
        compare(logits, image)
    whole = ("all-in", "forward", "pydensecrf")
    whole_calls = {n: f for n, f in functions.items() if n.startswith(whole)}
    for call in whole_calls.values():
        call()  # what is kept from call to call does not count
    growths = {n: round(peak_memory(f, device), 1) for n, f in whole_calls.items()}
    timed = interleaved(functions, device, args.seconds, least_rounds=args.rounds)
    for name, result in timed.items():
        growth = growths.get(name)
        memory = "" if growth is None else f"  memory growth {growth:6.0f} MiB"
        print(
            f"  {name:<24} {result.median * 1e3:9.1f} ms  fastest {result.fastest * 1e3:9.1f} ms"
            f"{memory}"
        )
        if writer:
            row = {**machine, "size": size, "iterations": ITERATIONS, "stage": name}
            row |= {"ms": round(result.median * 1e3, 3), "rounds": len(result.samples)}
            row["fastest_ms"] = round(result.fastest * 1e3, 3)
            row["growth_mib"] = "" if growth is None else growth
            writer.write(row)
    print_ratios(size, {name: result.median for name, result in timed.items()})


def print_ratios(size: str, seconds: dict[str, float]) -> None:
    if "pydensecrf, all-in" in seconds:
        for name in ("all-in", "all-in, compat"):
            print(f"  {name}: {seconds['pydensecrf, all-in'] / seconds[name]:.2f} times pydensecrf")
    training = seconds["forward + backward"]
    print(
        f"  forward + backward: {training / seconds['forward for training']:.2f} times the forward "
        f"of training, {training / seconds['all-in']:.2f} times all-in"
    )
    for name, (time, memory) in RECORDED.get(size, {}).items():
        if name not in sys.modules:
            growth = "" if memory is None else f", {memory} MiB"
            print(f"  {name} is not installed; recorded elsewhere, not run: {time} s{growth}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--sizes", default=",".join(RECORDED), help="WxHxL,...")
    parser.add_argument("--threads", help="CPU threads, comma-separated; default: PyTorch's choice")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for one size; default 20")
    parser.add_argument("--rounds", type=int, default=3, help="at least so many; default: 3")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not gpu:
        parser.error("--device cuda: PyTorch sees no GPU here")
    for size in args.sizes.split(","):
        parts = size.split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
            parser.error(f"--sizes takes WIDTHxHEIGHTxLABELS, comma-separated, not {size!r}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.manual_seed(0)
    machine = describe_machine(torch.device(args.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value != ""))
    before = torch.get_num_threads()
    counts = [int(t) for t in args.threads.split(",")] if args.threads else [before]
    try:
        for size in args.sizes.split(","):
            for count in counts if args.device == "cpu" else [before]:
                torch.set_num_threads(count)
                if args.device == "cpu":
                    machine["threads"] = count
                measure(size, args, machine)
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
