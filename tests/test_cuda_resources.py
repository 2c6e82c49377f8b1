"""The assembler's own report on the CUDA kernels: the hot ones must not spill registers."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from atrousx import _library

OBJECTS = Path(__file__).parents[1] / "build" / "ninja" / "_cuda"
# A spilled sum would be written to and read from memory in every step of the innermost loop.
HOT_KERNELS = [
    "atrous_conv2d_depthwise_grad_weight_kernel",
    "atrous_conv2d_depthwise_kernel",
    "atrous_conv2d_depthwise_planes_grad_weight_kernel",
    "atrous_conv2d_depthwise_planes_kernel",
    "atrous_conv2d_gather_direct_kernel",
    "atrous_conv2d_gather_kernel",
    "atrous_conv2d_gather_tensorcore_kernel",
    "atrous_conv2d_grad_weight_direct_kernel",
    "atrous_conv2d_grad_weight_kernel",
    "atrous_conv2d_grad_weight_tensorcore_kernel",
    "atrous_conv2d_pack_kernel",
    "atrous_conv2d_sum_parts_kernel",
    "atrous_conv2d_transpose_kernel",
    "mean_field_blur_kernel",
    "mean_field_splat_kernel",
    "mean_field_update_kernel",
    "multi_rate_sum_tensorcore_kernel",
    "permutohedral_blur_kernel",
    "permutohedral_corner_product_kernel",
    "permutohedral_slice_kernel",
    "permutohedral_splat_kernel",
    "upsample_argmax_kernel",
    "upsample_bilinear2d_backward_kernel",
    "upsample_bilinear2d_forward_kernel",
    "upsample_cross_entropy_backward_kernel",
    "upsample_cross_entropy_forward_kernel",
]
# These index an array by a number of the features' dimensions: it lies in local memory by intent.
LOCAL_ARRAY_KERNELS = ["permutohedral_embed_kernel", "permutohedral_embed_backward_kernel"]


class Report(NamedTuple):
    kernel: str
    architecture: str
    stack: int
    spilled: int


def read_report(text: str) -> list[Report]:
    """What `ptxas -v` printed, kernel by kernel."""
    pattern = (
        r"Compiling entry function '(\S+)' for '(\S+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    return [
        Report(name, architecture, int(stack), int(stores) + int(loads))
        for name, architecture, stack, stores, loads in re.findall(pattern, text, re.DOTALL)
    ]


def test_reading_a_report():
    text = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_80'
ptxas info    : Function properties for _Z3onev
    48 bytes stack frame, 52 bytes spill stores, 60 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90a'
ptxas info    : Function properties for _Z3twov
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    assert read_report(text) == [
        Report("_Z3onev", "sm_80", 48, 112),
        Report("_Z3twov", "sm_90a", 0, 0),
    ]


@functools.cache
def reports() -> list[Report]:
    texts = [path.read_text() for path in sorted(OBJECTS.rglob("*.ptxas"))]
    return [report for text in texts for report in read_report(text)]


def reports_of(kernel: str) -> list[Report]:
    # The mangled name holds the length of the plain one, so that no longer name is meant.
    found = [report for report in reports() if f"{len(kernel)}{kernel}" in report.kernel]
    assert found, "the assembler's report does not name this kernel"
    return found


needs_cuda_build = pytest.mark.skipif(
    _library.cuda is None or not OBJECTS.is_dir(), reason="the CUDA library was not built here"
)


@needs_cuda_build
@pytest.mark.parametrize("kernel", HOT_KERNELS)
def test_hot_kernels_stay_in_registers(kernel):
    assert not [report for report in reports_of(kernel) if report.spilled or report.stack]


@needs_cuda_build
@pytest.mark.parametrize("kernel", LOCAL_ARRAY_KERNELS)
def test_kernels_with_local_arrays_do_not_spill(kernel):
    assert not [report for report in reports_of(kernel) if report.spilled]
