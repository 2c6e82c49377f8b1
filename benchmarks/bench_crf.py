"""Times the dense CRF on a photograph: all-in, its stages, and training.

    python benchmarks/bench_crf.py [--threads 1,2] [--sizes 500x375x21,1024x512x19] [--csv FILE]

A call is ten iterations with sigmas 67/3 and 3, as the DeepLab papers' code uses it. pydensecrf
cannot be installed from PyPI any more: its times are recorded ones, taken when this package's
targets were set, and are printed as such. They are no measurement of this run.
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
from timing import CsvWriter, describe_machine, interleaved
from torch import Tensor

import atrousx
from atrousx.compat.pydensecrf import densecrf
from atrousx.nn.dense_crf import pixel_features
from atrousx.ops._mean_field import mean_field
from atrousx.ops._permutohedral_lattice import build_lattice

ITERATIONS = 10
# Seconds of a whole call by pydensecrf, which uses one core whatever there is.
PYDENSECRF_RECORDED = {"500x375x21": 0.77, "1024x512x19": 2.57}
Stage = tuple[str, Callable[[], object]]


def make_input(size: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smooth random logits and scikit-image's photograph of a cup of coffee, resized."""
    width, height, labels = (int(part) for part in size.split("x"))
    photo = cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_AREA)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].to(device)
    coarse = 3 * torch.randn(1, labels, height // 8 + 1, width // 8 + 1, device=device)
    logits = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return logits.contiguous(), image


def compat_call(logits: Tensor, image: Tensor) -> Callable[[], object]:
    """The same through the pydensecrf interface, arrays in and out."""
    labels, height, width = logits.shape[1:]
    unary = -logits.log_softmax(1)[0].reshape(labels, -1).cpu().numpy()
    rgb = np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())

    def call() -> object:
        d = densecrf.DenseCRF2D(width, height, labels)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(sxy=3, compat=3)
        d.addPairwiseBilateral(sxy=67, srgb=3, rgbim=rgb, compat=4)
        return d.inference(ITERATIONS)

    return call


def stages(logits: Tensor, image: Tensor) -> list[Stage]:
    """What is timed, by name; everything without gradients but the last two."""
    labels = logits.shape[1]
    crf = atrousx.DenseCRF(labels, iterations=ITERATIONS).to(logits.device)
    guide, flat = image.float(), logits.flatten(2)
    found: list[Stage] = [("all-in", lambda: crf(logits, image))]
    if logits.device.type == "cpu":
        found.append(("all-in, compat", compat_call(logits, image)))
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


def measure(size: str, args: argparse.Namespace, machine: dict[str, Any]) -> None:
    device = torch.device(args.device)
    print(f"\n{size}, {ITERATIONS} iterations, threads {machine['threads'] or 'of the GPU'}")
    writer = CsvWriter(args.csv) if args.csv else None
    functions = dict(stages(*make_input(size, device)))
    timed = interleaved(functions, device, args.seconds, least_rounds=args.rounds)
    for name, result in timed.items():
        print(f"  {name:<24} {result.median * 1e3:9.1f} ms  fastest {result.fastest * 1e3:9.1f} ms")
        if writer:
            row = {**machine, "size": size, "iterations": ITERATIONS, "stage": name}
            row |= {"ms": round(result.median * 1e3, 3), "rounds": len(result.samples)}
            row["fastest_ms"] = round(result.fastest * 1e3, 3)
            writer.write(row)
    if size in PYDENSECRF_RECORDED:
        seconds = PYDENSECRF_RECORDED[size]
        print(f"  pydensecrf, all-in       {seconds * 1e3:9.1f} ms  (recorded, not run here)")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--sizes", default=",".join(PYDENSECRF_RECORDED), help="WxHxL,...")
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
