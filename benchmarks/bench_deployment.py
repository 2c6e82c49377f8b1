"""Measures whole networks in inference beside PyTorch, torch.compile, ONNX Runtime and OpenVINO.

All sides have the same weights and run in turns in one process. Their results are compared. The
original is the public code's own network where it is installed, else the same network on PyTorch's
layers. A side that is not installed is named, and how to install it.

    python benchmarks/bench_deployment.py --csv FILE
    python benchmarks/bench_deployment.py --networks v3plus --dtype bfloat16
"""

from __future__ import annotations

import argparse
import copy
import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import CsvWriter, describe_machine
from torch import Tensor, nn
from torchvision_models import segmentation, twin

import atrousx
from atrousx.doctor.timing import fair_settings, interleaved
from atrousx.models import deeplab_v3, deeplab_v3plus, from_weights, to_torch
from atrousx.models.segmenter import Segmenter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Call = Callable[[], Any]


class Missing(Exception):
    """A side cannot run here; the message says why."""


class Case(NamedTuple):
    """A network, PyTorch's twin of it, one image, and the dtype."""

    model: Segmenter
    original: nn.Module
    image: Tensor
    dtype: torch.dtype

    def converted(self, layout: torch.memory_format) -> tuple[nn.Module, Tensor]:
        """Returns a copy of the twin that returns its logits, and the image."""
        kind: dict[str, Any] = {"dtype": self.dtype, "memory_format": layout}
        network = OnlyLogits(copy.deepcopy(self.original)).to(**kind)
        return network, self.image.to(**kind)


class Network(NamedTuple):
    """How a network and its original are built.

    Attributes:
        build: returns the network.
        original: returns the public code's network with the same weights, or None if that is not
            installed.
        multiple: the original takes images of multiples of so many pixels.
    """

    build: Callable[[], Segmenter]
    original: Callable[[Segmenter], nn.Module | None]
    multiple: int = 1


class OnlyLogits(nn.Module):
    """A network that returns its logits, not a dictionary, for exporters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.network(image))


def logits_of(result: Any) -> Tensor:
    found = result["out"] if isinstance(result, dict) else result
    assert isinstance(found, Tensor)
    return found


def torchvisions(model: Segmenter) -> nn.Module | None:
    return twin(model, "resnet50")


def smps(model: Segmenter) -> nn.Module | None:
    """Returns segmentation_models.pytorch's network, and gives the model its weights."""
    segmentation()  # smp imports torchvision, which may be of another PyTorch
    try:
        smp = importlib.import_module("segmentation_models_pytorch")
    except ImportError:
        return None
    network: nn.Module = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)
    model.load_state_dict(from_weights(network.state_dict()).state_dict())
    return network


NETWORKS = {
    "v3_resnet50_torchvision": Network(lambda: deeplab_v3(layout="torchvision"), torchvisions),
    "v3plus_resnet50_smp": Network(lambda: deeplab_v3plus(layout="smp"), smps, multiple=16),
}


# Each side returns a function that computes the logits.


def optimized(case: Case) -> Call:
    kind: dict[str, Any] = {"dtype": case.dtype, "memory_format": torch.channels_last}
    model, image = atrousx.optimize(case.model).to(**kind), case.image.to(**kind)
    return lambda: model(image)["out"]


def eager(case: Case, layout: torch.memory_format) -> Call:
    network, image = case.converted(layout)
    return lambda: network(image)


def compiled(case: Case) -> Call:
    network, image = case.converted(torch.channels_last)
    function = torch.compile(network)
    # Inductor packs the weights, as a deployment would.
    with importlib.import_module("torch._inductor.config").patch(freezing=True):
        function(image)
    return lambda: function(image)


def exported(case: Case, folder: Path) -> Path:
    """Writes the float32 network as ONNX."""
    for name in ("onnx", "onnxscript"):
        _package(name)
    path = folder / "network.onnx"
    if not path.exists():
        network = OnlyLogits(case.original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (case.image,), path, dynamo=True, verbose=False)
    return path


def onnxruntime(case: Case, folder: Path) -> Call:
    if case.dtype != torch.float32:
        raise Missing("ONNX Runtime's CPU convolutions know no bfloat16")
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(exported(case, folder)), options)
    feed = {session.get_inputs()[0].name: case.image.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(case: Case, folder: Path) -> Call:
    package = _package("openvino")
    precision = "f32" if case.dtype == torch.float32 else "bf16"
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    network = package.Core().compile_model(str(exported(case, folder)), "CPU", settings)
    request, image = network.create_infer_request(), case.image.numpy()
    return lambda: torch.from_numpy(request.infer([image])[0])


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"pip install {name}") from error


def sides(case: Case, folder: Path) -> dict[str, Callable[[], Call]]:
    return {
        "atrousx": lambda: optimized(case),
        "eager_contiguous": lambda: eager(case, torch.contiguous_format),
        "eager_channels_last": lambda: eager(case, torch.channels_last),
        "compile": lambda: compiled(case),
        "onnxruntime": lambda: onnxruntime(case, folder),
        "openvino": lambda: openvino(case, folder),
    }


def case_of(network: Network, args: argparse.Namespace) -> tuple[Case, bool]:
    """Returns the case, and whether its original is the public code's own."""
    torch.manual_seed(0)
    model = network.build().eval()
    own = network.original(model)
    extent = args.extent // network.multiple * network.multiple
    image = torch.randn(args.batch, 3, extent, extent)
    original = (to_torch(model) if own is None else own).eval()
    return Case(model, original, image, DTYPES[args.dtype]), own is not None


def prepared(case: Case, folder: Path) -> Iterator[tuple[str, Call | str]]:
    """Yields each side and its call, or why it is missing."""
    for name, prepare in sides(case, folder).items():
        try:
            yield name, prepare()
        except Missing as reason:
            yield name, str(reason)


@torch.inference_mode()
def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    case, is_public = case_of(NETWORKS[name], args)
    with tempfile.TemporaryDirectory() as folder:
        found = dict(prepared(case, Path(folder)))
        calls = {side: call for side, call in found.items() if not isinstance(call, str)}
        exact = logits_of(case.original(case.image)).double()
        errors = {
            side: float((call().double() - exact).norm() / exact.norm())
            for side, call in calls.items()
        }
        timed = interleaved(calls, torch.device("cpu"), args.seconds, args.rounds)
    speed = {side: args.batch / taken.median for side, taken in timed.items()}
    others = {side: value for side, value in speed.items() if side != "atrousx"}
    return {
        "network": name,
        "extent": case.image.shape[-1],
        "original": "public code" if is_public else "atrousx on PyTorch's layers",
        **{f"{side}_images_per_s": f"{speed[side]:.4g}" if side in speed else "" for side in found},
        "fastest_other": max(others, key=lambda side: others[side]),
        "ratio": f"{speed['atrousx'] / max(others.values()):.3f}",
        **{f"{side}_error": f"{errors[side]:.1e}" if side in errors else "" for side in found},
        "rounds": len(timed["atrousx"].samples),
        "missing": "; ".join(
            f"{side}: {why}" for side, why in found.items() if isinstance(why, str)
        ),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", metavar="NAME,...", default="", help="names that hold one")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--batch", type=int, default=1, help="images; default: 1")
    parser.add_argument("--extent", type=int, default=513, help="height and width; default: 513")
    parser.add_argument("--seconds", type=float, default=60.0, help="for a network; default: 60")
    parser.add_argument("--rounds", type=int, default=5, help="at least; default: 5")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(argv)
    args.chosen = [n for n in NETWORKS if any(w in n for w in args.networks.split(","))]
    if not args.chosen:
        parser.error(f"--networks {args.networks}: no network's name holds that")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    machine = describe_machine(torch.device("cpu"))
    machine |= {"dtype": args.dtype, "batch": args.batch}
    for name in args.chosen:
        with fair_settings(args.dtype):
            row = measure(name, args)
            print("\n".join(f"{key:>32}  {value}" for key, value in row.items()), flush=True)
            if args.csv:
                CsvWriter(args.csv).write({**machine, **row})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
