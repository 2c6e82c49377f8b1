"""The assembler's report on the CUDA kernels: hot kernels must not spill registers."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from atrousx import _library

OBJECTS = Path(__file__).parents[1] / "build" / "ninja" / "_cuda"
# A spilled sum would be stored and loaded in every step of the innermost loop.
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
# These index an array by a number of feature dimensions, so it is in local memory on purpose.
LOCAL_ARRAY_KERNELS = ["permutohedral_embed_kernel", "permutohedral_embed_backward_kernel"]


# Shared memory limit of a block in KiB by architecture, from the CUDA programming guide's table.
SHARED_LIMITS = {
    **dict.fromkeys(("sm_80", "sm_87"), 163),
    **dict.fromkeys(("sm_86", "sm_88", "sm_89", "sm_120", "sm_121"), 99),
    **dict.fromkeys(("sm_90", "sm_90a", "sm_100", "sm_103", "sm_110"), 227),
}
# The columns of a tensor-core kernel's tile: its template argument, or the number of lanes.
TENSOR_KERNELS = {
    "atrous_conv2d_gather_tensorcore_kernel": r"Li(\d+)E",
    "atrous_conv2d_grad_weight_tensorcore_kernel": None,
    "multi_rate_sum_tensorcore_kernel": r"Li(\d+)E",
}


class Report(NamedTuple):
    kernel: str
    architecture: str
    stack: int
    spilled: int
    shared: int  # static


def read_report(text: str) -> list[Report]:
    """Parses the output of `ptxas -v`, kernel by kernel."""
    pattern = (
        r"Compiling entry function '(\S+)' for '(\S+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"\nptxas info +: Used \d+ registers([^\n]*)"
    )
    reports = []
    for name, architecture, stack, stores, loads, rest in re.findall(pattern, text, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stores) + int(loads)
        static = int(shared[1]) if shared else 0
        reports.append(Report(name, architecture, int(stack), spilled, static))
    return reports


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
ptxas info    : Used 36 registers, used 1 barriers, 2048 bytes smem, 3592 bytes cmem[0]
"""
    assert read_report(text) == [
        Report("_Z3onev", "sm_80", 48, 112, 0),
        Report("_Z3twov", "sm_90a", 0, 0, 2048),
    ]


@functools.cache
def reports() -> list[Report]:
    texts = [path.read_text() for path in sorted(OBJECTS.rglob("*.ptxas"))]
    return [report for text in texts for report in read_report(text)]


def reports_of(kernel: str) -> list[Report]:
    # The mangled name contains the length of the plain name, so longer names do not match.
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


@needs_cuda_build
@pytest.mark.parametrize("kernel", TENSOR_KERNELS)
def test_tensor_core_tiles_fit_the_shared_memory_of_a_block(kernel):
    # Three stages, each with 128 bytes for each of 128 lanes and the columns: kTensorSharedBytes.
    for report in reports_of(kernel):
        columns = TENSOR_KERNELS[kernel] and re.search(TENSOR_KERNELS[kernel], report.kernel)[1]
        ring = 3 * (128 + int(columns or 128)) * 128
        assert ring + report.shared <= 1024 * SHARED_LIMITS[report.architecture], report


@needs_cuda_build
def test_every_architecture_is_compiled_for():
    compiled = {report.architecture for report in reports()}
    named = re.findall(r"(\d+)\.(\d[af]?)", _library.cuda.architectures)
    assert compiled == {f"sm_{major}{minor}" for major, minor in named}
