"""Measures images per second of every DeepLab: as built, optimized, and with PyTorch's layers.

The four networks of the first paper come first, beside the speeds in that paper. Its GPU was
another one, so only the ratios between variants can be compared. All variants have the same
weights, run in turns in one process, and their results are compared. If torchvision is installed,
its DeepLab v3 runs beside the same network of atrousx.

    python benchmarks/bench_deeplab.py --models v1
    python benchmarks/bench_deeplab.py --extent 513 --memory-format channels_last --csv FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import DTYPES, CsvWriter, describe_machine, peak_memory
from torch import Tensor, nn
from torchvision_models import twin

import atrousx
from atrousx.doctor.timing import fair_settings, interleaved
from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, deeplab_v3plus, to_torch

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Name: builder, and images per second in the first paper (table 1 of arXiv:1412.7062).
MODELS: dict[str, tuple[Callable[[], nn.Module], float | None]] = {
    "v1_7x7_r4": (lambda: deeplab_v1(fc6="7x7_r4"), 1.44),
    "v1_4x4_r4": (lambda: deeplab_v1(fc6="4x4_r4"), 2.90),
    "v1_4x4_r8": (lambda: deeplab_v1(fc6="4x4_r8"), 2.90),
    "v1_large_fov": (deeplab_v1, 4.84),
    "v1_multi_scale_features": (lambda: deeplab_v1(multi_scale_features=True), None),
    "v2_resnet101_aspp_l": (lambda: deeplab_v2(multi_scale=False), None),
    "v2_resnet101_aspp_s": (lambda: deeplab_v2(head="aspp_s", multi_scale=False), None),
    "v2_resnet101_large_fov": (lambda: deeplab_v2(head="large_fov", multi_scale=False), None),
    "v2_vgg16_aspp_l": (lambda: deeplab_v2(backbone="vgg16", multi_scale=False), None),
    "v2_resnet101_three_scales": (deeplab_v2, None),
    "v3_resnet50_os16": (lambda: deeplab_v3(output_stride=16), None),
    "v3_resnet50_os8": (lambda: deeplab_v3(output_stride=8), None),
    "v3_resnet101_os16": (lambda: deeplab_v3(backbone="resnet101", output_stride=16), None),
    "v3_resnet101_os8": (lambda: deeplab_v3(backbone="resnet101", output_stride=8), None),
    "v3_resnet50_cascade": (lambda: deeplab_v3(head="cascade"), None),
    "v3_resnet50_torchvision": (lambda: deeplab_v3(layout="torchvision"), None),
    "v3_resnet101_torchvision": (
        lambda: deeplab_v3(backbone="resnet101", layout="torchvision"),
        None,
    ),
    "v3plus_resnet50": (deeplab_v3plus, None),
    "v3plus_resnet50_smp": (lambda: deeplab_v3plus(layout="smp"), None),
    "v3plus_resnet101": (lambda: deeplab_v3plus(backbone="resnet101"), None),
    "v3plus_xception65": (lambda: deeplab_v3plus(backbone="xception65"), None),
    "v3plus_mobilenet_v2": (lambda: deeplab_v3plus(backbone="mobilenet_v2"), None),
}
# The network that the first paper chose. Ratios are relative to it.
YARDSTICK = "v1_large_fov"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous")
    parser.add_argument("--batch", type=int, default=1, help="images; default: 1")
    parser.add_argument("--extent", type=int, default=321, help="height and width; default: 321")
    parser.add_argument("--models", metavar="NAME,...", default="", help="names that hold one")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model; default: 10")
    parser.add_argument("--rounds", type=int, default=3, help="at least; default: 3")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(argv)
    args.chosen = [name for name in MODELS if any(w in name for w in args.models.split(","))]
    if not args.chosen:
        parser.error(f"--models {args.models}: no model's name holds that")
    return args


def operations(model: nn.Module, image: Tensor) -> tuple[float, float]:
    """Returns the convolutions' floating-point operations for one image: all, and those on data."""
    counted = [0.0, 0.0]

    def count(conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dense = 2.0 * output[0].numel() * conv.weight[0].numel()
        options = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        counted[0] += dense
        counted[1] += dense * atrousx.ops.live_fraction(inputs[0].shape[-2:], *options)

    twin = to_torch(model).to("meta")
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    twin(image[:1].to("meta"))
    return counted[0], counted[1]


def torchvisions(name: str, model: nn.Module) -> nn.Module | None:
    """Returns torchvision's DeepLab v3 with the model's weights, or None if there is none."""
    if not name.endswith("_torchvision"):
        return None
    found = twin(model, name.split("_")[1])
    return None if found is None else found.eval()


@torch.inference_mode()
def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    build, paper = MODELS[name]
    torch.manual_seed(0)
    device, layout = torch.device(args.device), FORMATS[args.memory_format]
    model = build().eval()
    image = torch.randn(args.batch, 3, args.extent, args.extent)
    dense, live = operations(model, image)
    sides = {"atrousx": model, "optimized": atrousx.optimize(model), "torch": to_torch(model)}
    twin = torchvisions(name, model)
    if twin is not None:
        sides["torchvision"] = twin
    kind: dict[str, Any] = {"device": device, "dtype": DTYPES[args.dtype]}
    for side in sides.values():
        # Each side gets the memory format separately: the optimized model has its own copy of the
        # weights.
        side.to(**kind | {"memory_format": layout})
    image = image.to(**kind).to(memory_format=layout)
    expected = sides["torch"](image)["out"].double()
    difference = max(
        float((side(image)["out"].double() - expected).norm() / expected.norm())
        for side in sides.values()
    )
    calls = {key: (lambda side=side: side(image)) for key, side in sides.items()}
    timed = interleaved(calls, device, args.seconds, args.rounds)
    memory = {key: round(peak_memory(call, device)) for key, call in calls.items()}
    speed = {key: round(args.batch / taken.median, 4) for key, taken in timed.items()}
    names = ("atrousx", "optimized", "torch", "torchvision")
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflop": round(dense * 1e-9, 2),
        "live_gflop": round(live * 1e-9, 2),
        **{f"{key}_images_per_s": speed.get(key, "") for key in names},
        "paper_images_per_s": paper or "",
        **{f"{key}_peak_mib": memory.get(key, "") for key in names},
        "rounds": len(timed["atrousx"].samples),
        "difference": f"{difference:.1e}",
    }


def ratios(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the first paper's networks' speeds as multiples of one, measured and published."""
    listed = {row["model"]: row for row in rows if row["paper_images_per_s"]}
    if YARDSTICK not in listed or len(listed) < 2:
        return ""
    columns = ("atrousx", "optimized", "torch", "paper")
    lines = [f"images per second over {YARDSTICK}'s, {', '.join(columns)}:"]
    for name, row in listed.items():
        keys = [f"{column}_images_per_s" for column in columns]
        cells = [f"{row[key] / listed[YARDSTICK][key]:9.2f}" for key in keys]
        lines.append(f"{name:>{COLUMNS['model']}} {' '.join(cells)}")
    return "\n".join(lines)


# The last columns are the MiB that one call adds to the memory in use: optimized, and PyTorch's.
COLUMNS = {
    "model": 25,
    "parameters": 11,
    "gflop": 8,
    "live_gflop": 10,
    "atrousx": 8,
    "optimized": 9,
    "torch": 8,
    "torchvision": 11,
    "paper": 6,
    "optimized_peak_mib": 18,
    "torch_peak_mib": 14,
    "difference": 10,
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(torch.device(args.device))
    machine |= {"dtype": args.dtype, "memory_format": args.memory_format}
    machine |= {"batch": args.batch, "extent": args.extent}
    print(
        f"{machine['machine']}, torch {machine['torch']}, {args.dtype}, {args.memory_format}, "
        f"{args.batch} x {args.extent}x{args.extent}; from 'atrousx' to 'paper': images per second"
    )
    print(" ".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
    rows = []
    for name in args.chosen:
        with fair_settings(args.dtype):
            row = measure(name, args)
        rows.append(row)
        cells = [row.get(key, row.get(f"{key}_images_per_s")) for key in COLUMNS]
        widths = COLUMNS.values()
        print(" ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)), flush=True)
        if args.csv:
            CsvWriter(args.csv).write({**machine, **row})
    if table := ratios(rows):
        print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
