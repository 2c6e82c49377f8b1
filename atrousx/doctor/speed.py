"""Times twelve of DeepLab's layers, its upsampling and the dense CRF against PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..nn import DenseCRF
from ..nn.dense_crf import pixel_features
from . import twins
from .cases import DTYPES
from .devices import Device
from .layers import LAYERS, Layer
from .timing import Measured, fair_settings, interleaved

# PyTorch counts as faster only if it is faster by this factor; smaller differences are noise.
MARGIN = 1.05
NAMES = (
    "vgg_conv5_r2",
    "vgg_large_fov_r12",
    "v2_aspp_r6",
    "v2_aspp_r24",
    "resnet_stage4_r2",
    "resnet_stage5_r4",
    "v3_aspp_os16_r6",
    "v3_aspp_os16_r12",
    "v3_aspp_os16_r18",
    "v3_aspp_os8_r24",
    "depthwise_r2",
    "depthwise_aspp_r18",
)
Function = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One line of the report: milliseconds of atrousx's kernels and of PyTorch, NaN if not run."""

    line: str
    pass_name: str
    dtype: str
    batch: int
    atrousx_ms: float
    torch_ms: float
    message: str = ""

    @property
    def ratio(self) -> float:
        """The time of PyTorch divided by the time of atrousx."""
        return self.torch_ms / self.atrousx_ms

    @property
    def status(self) -> str:
        if self.atrousx_ms != self.atrousx_ms:
            return "not run"
        return "slower" if self.ratio * MARGIN < 1 else "ok"


@dataclass(frozen=True)
class _Line:
    name: str
    pass_name: str
    dtype: str
    batch: int
    make: Callable[[], dict[str, Function]]  # "atrousx", "torch"


def timings(device: Device, seconds: float) -> Iterator[Timing]:
    """Times line after line; lines that have not started after ``seconds`` are not run."""
    start = time.perf_counter()
    lines = list(_lines(device))
    nan = float("nan")
    for line in lines:
        what = partial(Timing, line.name, line.pass_name, line.dtype, line.batch)
        if time.perf_counter() - start > seconds:
            yield what(nan, nan, message="the time was up")
            continue
        try:
            with fair_settings(line.dtype, algorithms=10):  # PyTorch's default; all would take long
                timed = interleaved(line.make(), device.torch, seconds / len(lines) / 2, 2, 40)
        except RuntimeError as error:  # for example out of memory
            message = (str(error).splitlines() or [type(error).__name__])[0]
            yield what(nan, nan, message=message)
            continue
        yield what(_milliseconds(timed["atrousx"]), _milliseconds(timed["torch"]))


def _milliseconds(measured: Measured) -> float:
    return round(measured.median * 1e3, 4)


def _lines(device: Device) -> Iterator[_Line]:
    on_cpu = device.is_cpu
    dtype, batch = ("float32", 1) if on_cpu else ("bfloat16", 8)
    if "tf32" not in device.dtypes and not on_cpu:
        dtype = "float16"
    layers = [layer for layer in LAYERS if layer.name in NAMES]
    trained = [layer for layer in layers if layer.name not in NAMES[9:10]] if on_cpu else layers
    where = device.torch
    crf = (80, 100) if on_cpu else (375, 500)
    for layer in layers:
        make = partial(_convolution, layer, where, dtype, batch, False)
        yield _Line(layer.name, "forward", dtype, batch, make)
    yield _Line(
        "upsample 65 -> 513", "forward", dtype, batch, partial(_upsample, where, dtype, batch)
    )
    yield _Line("upsampled loss", "training", dtype, batch, partial(_loss, where, dtype, batch))
    name = f"dense CRF {crf[1]}x{crf[0]}x21"
    yield _Line(name, "forward", "float32", 1, partial(_crf, where, crf))
    for layer in trained:
        make = partial(_convolution, layer, where, dtype, batch, True)
        yield _Line(layer.name, "training", dtype, batch, make)
    if "tf32" in device.dtypes:
        for layer in layers:
            make = partial(_convolution, layer, where, "tf32", batch, False)
            yield _Line(layer.name, "forward", "tf32", batch, make)


def _convolution(
    layer: Layer, device: torch.device, dtype: str, batch: int, trains: bool
) -> dict[str, Function]:
    """Makes both functions of a convolution, in channels_last on a GPU, else in NCHW."""
    layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last

    def made(*shape: int) -> Tensor:
        tensor = torch.randn(shape, device=device).to(DTYPES[dtype])
        return tensor.to(memory_format=layout).requires_grad_(trains)

    x = made(batch, layer.in_channels, layer.extent, layer.extent)
    w = made(layer.out_channels, layer.in_channels // layer.groups, layer.kernel, layer.kernel)
    with torch.no_grad():
        w /= (w[0].numel()) ** 0.5
    options = {"padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}

    def pass_of(convolve: Callable[..., Tensor]) -> object:
        y = convolve(x, w, **options)
        return torch.autograd.grad(y, (x, w), torch.ones_like(y)) if trains else y

    native = partial(ops.atrous_conv2d, backend="native")
    return {"atrousx": partial(pass_of, native), "torch": partial(pass_of, F.conv2d)}


def _upsample(device: torch.device, dtype: str, batch: int) -> dict[str, Function]:
    logits = torch.randn(batch, 21, 65, 65, device=device).to(DTYPES[dtype])
    return {
        "atrousx": lambda: ops.upsample_bilinear2d(logits, (513, 513)),
        "torch": lambda: F.interpolate(logits, (513, 513), mode="bilinear"),
    }


def _loss(device: torch.device, dtype: str, batch: int) -> dict[str, Function]:
    logits = torch.randn(batch, 21, 65, 65, device=device).to(DTYPES[dtype]).requires_grad_()
    target = torch.randint(21, (batch, 513, 513), device=device)

    def by_atrousx() -> object:
        return torch.autograd.grad(ops.upsample_cross_entropy(logits, target), logits)

    def by_torch() -> object:
        upsampled = F.interpolate(logits, (513, 513), mode="bilinear")
        return torch.autograd.grad(F.cross_entropy(upsampled, target), logits)

    return {"atrousx": by_atrousx, "torch": by_torch}


def _crf(device: torch.device, size: tuple[int, int]) -> dict[str, Function]:
    """Makes five CRF iterations by atrousx and by PyTorch; PyTorch gets lattices made before."""
    torch.manual_seed(0)
    coarse = 3 * torch.randn(1, 21, size[0] // 8 + 1, size[1] // 8 + 1, device=device)
    logits = F.interpolate(coarse, size, mode="bilinear")
    image = F.interpolate(torch.rand(1, 3, 9, 9, device=device), size, mode="bilinear") * 255
    crf = DenseCRF(21, iterations=5)
    terms, weights = [], []
    for kernel, coloured in ((crf.gaussian, False), (crf.bilateral, True)):
        assert kernel is not None
        term = kernel.term(pixel_features(image, coloured), "symmetric")
        scale = twins.symmetric_scale(term.lattice)
        terms.append((*term.lattice, scale, scale, scale.new_empty(0)))
        weights.append(kernel.fixed_weight)
    return {
        "atrousx": lambda: crf(logits, image),
        "torch": lambda: twins.mean_field(logits.flatten(2), terms, weights, 5),
    }
