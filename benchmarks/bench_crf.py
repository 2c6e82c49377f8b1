"""Times the dense CRF on a photograph, beside pydensecrf: all-in, its stages, training, memory.

    python benchmarks/bench_crf.py [--threads 1,2] [--sizes 500x375x21,1024x512x19] [--csv FILE]

A call is ten iterations with sigmas 67/3 and 3, as in the code of the DeepLab papers. On the CPU
atrousx and pydensecrf run in turns, and their results are compared. MONAI's CRF takes seconds, so
it runs once, alone. PyPI has neither library ready to use: pydensecrf's generated C++ does not
compile on current Python, and MONAI's wheel lacks its C++. Build them from source. The benchmark
prints what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import CsvWriter, describe_machine, peak_memory
from torch import Tensor

import atrousx
from atrousx.compat.pydensecrf import densecrf
from atrousx.doctor.timing import interleaved
from atrousx.nn.dense_crf import pixel_features
from atrousx.ops._mean_field import mean_field
from atrousx.ops._permutohedral_lattice import build_lattice

try:
    import pydensecrf.densecrf as original_densecrf
except ImportError:
    original_densecrf = None

try:
    import monai._C  # noqa: F401
    from monai.networks.blocks import CRF as MonaiCRF
except ImportError:
    MonaiCRF = None

ITERATIONS = 10
SIZES = "500x375x21,1024x512x19"
MISSING = {
    "pydensecrf": "build it from its source",
    "MONAI's CRF": "build monai from its source with BUILD_MONAI=1",
}
Stage = tuple[str, Callable[[], object]]


def photograph(width: int, height: int) -> NDArray[np.uint8]:
    """Returns scikit-image's photograph of a cup of coffee, resized. Without the packages for it,
    returns a drawing with as many colours and edges, whose lattice has another size."""
    try:
        import cv2
        import skimage.data

        photo = skimage.data.coffee()
        return np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA))
    except (ImportError, OSError) as error:
        print(f"  no photograph ({error}): a drawing stands for it")
    rows, columns = np.mgrid[:height, :width] / 40
    waves = [np.sin(rows * (k + 1) + np.floor(columns) + np.cos(columns * k)) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return (127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def make_input(size: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns smooth random logits and a photograph."""
    width, height, labels = (int(part) for part in size.split("x"))
    image = torch.from_numpy(photograph(width, height)).permute(2, 0, 1)[None].to(device)
    coarse = 3 * torch.randn(1, labels, height // 8 + 1, width // 8 + 1, device=device)
    logits = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return logits.contiguous(), image


def compat_call(
    logits: Tensor, image: Tensor, library: Any = densecrf
) -> Callable[[], NDArray[np.float32]]:
    """Returns the same work through pydensecrf's interface, of either library, with arrays."""
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


def monai_call(logits: Tensor, image: Tensor) -> Callable[[], object]:
    """Returns the nearest call of MONAI's CRF. Its filters have no normalisation."""
    crf = MonaiCRF(ITERATIONS, 4.0, 3.0, 67.0, 3.0, 3.0, update_factor=1.0)
    guide = image.float()
    return lambda: crf(logits, guide)


def stages(logits: Tensor, image: Tensor) -> list[Stage]:
    """Returns the calls to time, by name. Only training computes gradients."""
    labels = logits.shape[1]
    crf = atrousx.DenseCRF(labels, iterations=ITERATIONS).to(logits.device)
    guide, flat = image.float(), logits.flatten(2)
    found: list[Stage] = [("all-in", lambda: crf(logits, image))]
    if logits.device.type == "cpu":
        found.append(("all-in, compat", compat_call(logits, image)))
        if original_densecrf is not None:
            found.append(("pydensecrf, all-in", compat_call(logits, image, original_densecrf)))
    terms = []
    for name, kernel, coloured in (
        ("gaussian", crf.gaussian, False),
        ("bilateral", crf.bilateral, True),
    ):
        assert kernel is not None
        features = pixel_features(guide, coloured)
        scaled = features / kernel.sigma(guide)[:, None]
        term = kernel.term(features, "symmetric")
        print(f"  {name}: {term.lattice.neighbours.shape[2]:,} vertices")
        found.append((f"lattice, {name}", partial(build_lattice, scaled)))
        found.append((f"iterations, {name}", partial(mean_field, flat, [term], ITERATIONS)))
        terms.append(term)
    found.append(("iterations, both", lambda: mean_field(flat, terms, ITERATIONS)))
    found.append(("iterations, no kernel", lambda: mean_field(flat, [], ITERATIONS)))
    return [(name, torch.no_grad()(call)) for name, call in found] + training(logits, image)


def training(logits: Tensor, image: Tensor) -> list[Stage]:
    """Returns forward and backward calls, with a given gradient of the probabilities."""
    grad = torch.randn_like(logits)
    inputs = logits.detach().requires_grad_()
    calls: list[Stage] = []
    for suffix, trainable in (("", False), (", trainable", True)):
        crf = atrousx.DenseCRF(logits.shape[1], iterations=ITERATIONS, trainable=trainable)
        crf.to(logits.device)
        wanted = [inputs, *crf.parameters()]

        def forward(crf: atrousx.DenseCRF = crf) -> Tensor:
            result: Tensor = crf(inputs, image)
            return result

        def both(crf: atrousx.DenseCRF = crf, wanted: list[Tensor] = wanted) -> object:
            return torch.autograd.grad(crf(inputs, image), wanted, grad)

        if not trainable:
            calls.append(("forward for training", forward))
        calls.append(("forward + backward" + suffix, both))
    return calls


def compare(logits: Tensor, image: Tensor) -> None:
    """Prints the difference between the two libraries' results, before either is timed."""
    expected = compat_call(logits, image, original_densecrf)()
    with torch.no_grad():
        found = atrousx.DenseCRF(len(expected), iterations=ITERATIONS)(logits, image)
    for name, q in (
        ("DenseCRF", found[0].flatten(1).numpy()),
        ("compat", compat_call(logits, image)()),
    ):
        labels = (q.argmax(0) != expected.argmax(0)).mean()
        print(
            f"  {name} and pydensecrf: probabilities differ by {np.abs(q - expected).max():.1e} at "
            f"most, labels on {100 * labels:.4f} % of pixels"
        )


def measure(size: str, args: argparse.Namespace, machine: dict[str, Any]) -> None:
    device = torch.device(args.device)
    print(f"\n{size}, {ITERATIONS} iterations, threads {machine['threads'] or 'of the GPU'}")
    writer = CsvWriter(args.csv) if args.csv else None
    logits, image = make_input(size, device)
    functions = dict(stages(logits, image))
    on_cpu = device.type == "cpu"
    if on_cpu and original_densecrf is not None:
        compare(logits, image)
    whole = ("all-in", "forward", "pydensecrf")
    whole_calls = {n: f for n, f in functions.items() if n.startswith(whole)}
    for call in whole_calls.values():
        call()  # fills the caches: memory that stays in use between calls does not count
    growths = {n: round(peak_memory(f, device), 1) for n, f in whole_calls.items()}
    timed = interleaved(functions, device, args.seconds, least_rounds=args.rounds)
    if on_cpu and MonaiCRF is not None:
        call = monai_call(logits, image)
        growths["MONAI's CRF"] = round(peak_memory(call, device), 1)
        timed |= interleaved({"MONAI's CRF": call}, device, 0, least_rounds=1)
    for name, result in timed.items():
        growth = growths.get(name)
        memory = "" if growth is None else f"  memory growth {growth:6.0f} MiB"
        print(
            f"  {name:<29} {result.median * 1e3:9.1f} ms  fastest {result.fastest * 1e3:9.1f} ms"
            f"{memory}"
        )
        if writer:
            row = {**machine, "size": size, "iterations": ITERATIONS, "stage": name}
            row |= {"ms": round(result.median * 1e3, 3), "rounds": len(result.samples)}
            row["fastest_ms"] = round(result.fastest * 1e3, 3)
            row["growth_mib"] = "" if growth is None else growth
            writer.write(row)
    seconds = {name: result.median for name, result in timed.items()}
    if on_cpu:
        print_peers(seconds)
    for suffix in ("", ", trainable"):
        both = seconds["forward + backward" + suffix]
        print(f"  forward + backward{suffix}: {both / seconds['all-in']:.2f} times all-in")


def print_peers(seconds: dict[str, float]) -> None:
    for peer, name in (("pydensecrf, all-in", "pydensecrf"), ("MONAI's CRF", "MONAI's CRF")):
        if peer not in seconds:
            print(f"  {name} is not installed: not run; {MISSING[name]}")
            continue
        for stage in ("all-in", "all-in, compat"):
            print(f"  {stage}: {seconds[peer] / seconds[stage]:.2f} times {name}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--sizes", default=SIZES, help="WxHxL,...")
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
