"""The cases that compare_builds.py times: one call of a public function under each name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

import atrousx
from atrousx import ops

Call = Callable[[], object]
# DeepLab's layers: inputs, outputs, kernel size, dilation, extent, groups.
LAYERS = {
    "vgg_large_fov_r12": (512, 1024, 3, 12, 41, 1),
    "v2_aspp_r24": (2048, 21, 3, 24, 41, 1),
    "resnet_stage4_r2": (256, 256, 3, 2, 65, 1),
    "v3_aspp_os16_r6": (2048, 256, 3, 6, 33, 1),
    "v3_aspp_os16_r18": (2048, 256, 3, 18, 33, 1),
    "depthwise_r2": (728, 728, 3, 2, 65, 728),
}
PASSES = {"forward": None, "grad_input": 0, "grad_weight": 1}
DTYPES = ("float32", "bfloat16")
UPSAMPLING = ("bilinear", "bilinear grad", "argmax", "cross_entropy", "loss grad", "softmax_add")
FORMATS = ("contiguous_format", "channels_last")


def convolution(layer: str, dtype: str, layout: str, wanted: int | None) -> Call:
    channels, outputs, taps, dilation, extent, groups = LAYERS[layer]
    sizes = [(1, channels, extent, extent), (outputs, channels // groups, taps, taps)]
    tensors = [  # an input and a weight
        torch.randn(size).to(getattr(torch, dtype), memory_format=getattr(torch, layout))
        for size in sizes
    ]
    tensors[1] /= (channels // groups * taps**2) ** 0.5
    if wanted is not None:
        tensors[wanted].requires_grad_()
    padding = dilation * (taps // 2)
    forward = partial(
        ops.atrous_conv2d,
        tensors[0],
        tensors[1],
        padding=padding,
        dilation=dilation,
        groups=groups,
        backend="native",
    )
    if wanted is None:
        return forward
    output = forward()
    grad = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, tensors[wanted], grad, retain_graph=True)


def upsampling(what: str, dtype: str, layout: str) -> Call:
    logits = torch.randn(1, 21, 65, 65).to(getattr(torch, dtype))
    logits = logits.contiguous(memory_format=getattr(torch, layout))
    size = (513, 513)
    target, total = torch.randint(21, (1, *size)), torch.zeros(1, 21, *size)
    if what == "bilinear grad":
        output = ops.upsample_bilinear2d(logits.requires_grad_(), size)
        grad = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, logits, grad, retain_graph=True)
    if what == "loss grad":
        logits.requires_grad_()
        return lambda: torch.autograd.grad(ops.upsample_cross_entropy(logits, target), logits)
    calls: dict[str, Call] = {
        "bilinear": partial(ops.upsample_bilinear2d, logits, size),
        "argmax": partial(ops.upsample_argmax, logits, size),
        "cross_entropy": partial(ops.upsample_cross_entropy, logits, target),
        "softmax_add": partial(ops.upsample_softmax_add_, total, logits),
    }
    return calls[what]


def dense_crf(what: str) -> Call:
    """A dense CRF on a 320x240 drawing, with as many colours and edges as a photograph."""
    rows, columns = torch.meshgrid(torch.arange(240) / 40, torch.arange(320) / 40, indexing="ij")
    waves = [torch.sin(rows * (k + 1) + columns.floor() + (columns * k).cos()) for k in range(3)]
    image = (127 + 90 * torch.stack(waves)[None] + 6 * torch.randn(1, 3, 240, 320)).clamp(0, 255)
    logits = torch.randn(1, 21, 240, 320)
    if what == "10 iterations":
        return partial(atrousx.DenseCRF(21, iterations=10).requires_grad_(False), logits, image)
    if what == "training":
        crf = atrousx.DenseCRF(21, iterations=10, trainable=True)
        wanted = [logits.requires_grad_(), *crf.parameters()]
        return lambda: torch.autograd.grad(crf(logits, image).square().sum(), wanted)
    places = torch.stack([columns, rows])[None] * (40 / 67)
    build = partial(atrousx.ops.PermutohedralLattice, torch.cat([places, image / 3], 1))
    return build if what == "lattice" else partial(build().filter, logits)


def all_cases() -> dict[str, Callable[[], Call]]:
    crf = ("lattice", "filter", "10 iterations", "training")
    kinds = list(product(DTYPES, FORMATS))
    return {
        **{
            f"conv {layer} {name} {kind[0]} {kind[1]}": partial(convolution, layer, *kind, wanted)
            for layer, kind, (name, wanted) in product(LAYERS, kinds, PASSES.items())
        },
        **{
            f"upsample {what} {kind[0]} {kind[1]}": partial(upsampling, what, *kind)
            for what, kind in product(UPSAMPLING, kinds)
        },
        **{f"crf {what}": partial(dense_crf, what) for what in crf},
    }
