"""The assembler's own report on the CUDA kernels: the hot ones must not spill registers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from atrousx import _library

OBJECTS = Path(__file__).parents[1] / "build" / "ninja" / "_cuda"
# A spilled sum would be written to and read from memory in every step of the innermost loop.
HOT_KERNELS = [
    "atrous_conv2d_gather_tensorcore_kernel",
    "atrous_conv2d_grad_weight_tensorcore_kernel",
    "atrous_conv2d_gather_kernel",
    "atrous_conv2d_grad_weight_kernel",
]


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


@pytest.mark.skipif(
    _library.cuda is None or not OBJECTS.is_dir(), reason="the CUDA library was not built here"
)
@pytest.mark.parametrize("kernel", HOT_KERNELS)
def test_hot_kernels_do_not_spill(kernel):
    texts = [path.read_text() for path in sorted(OBJECTS.rglob("*.ptxas"))]
    # The mangled name holds the length of the plain one, so that no longer name is meant.
    found = [
        report
        for text in texts
        for report in read_report(text)
        if f"{len(kernel)}{kernel}I" in report.kernel
    ]
    assert found, "the assembler's report does not name this kernel"
    spilling = [report for report in found if report.spilled or report.stack]
    assert not spilling
