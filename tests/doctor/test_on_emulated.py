"""Runs the doctor's cases on the device in host memory. Every operator of the schema runs in each
pass, dtype and layout on one small case, and its values are compared with the CPU's float64.

This sample always runs. `make emulated` also runs the operators' own tests on this device.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from atrousx.doctor.cases import Case, cases, operators
from atrousx.doctor.cases.case import ALL
from atrousx.doctor.checking import OK, References, planned, run_check
from atrousx.doctor.devices import Device

pytestmark = pytest.mark.emulated
DEVICE = Device("emulated:0", ALL, 132)
# The first case of each operator is used, except where this one is several times faster.
FASTER = ("sum, 64 outputs, C % 8 = 0",)


def sample() -> list[Case]:
    """Returns one case of each operator and pass."""
    found: dict[tuple[str, str], Case] = {}
    # Cases of a GPU are listed, because the device does not exist yet when tests are collected.
    for case in cases(replace(DEVICE, name="cuda:0"), quick=True):
        key = (case.operator, case.pass_name)
        if key not in found or case.name in FASTER:
            found[key] = case
    return list(found.values())


@pytest.mark.parametrize("case", sample(), ids=lambda case: f"{case.operator} {case.pass_name}")
def test_as_the_cpu(case: Case, emulated_device):
    references = References()
    plan = [pair for pair in planned([case], DEVICE) if pair[1].layout != "strided"]
    assert {check.dtype for _, check in plan} == set(case.dtypes)
    found = [run_check(*pair, DEVICE, references) for pair in plan]
    assert [check for check in found if check.status != OK] == []


def test_a_broken_kernel_is_noticed(emulated_device):
    (case,) = (case for case in sample() if case.operator == "_upsample_argmax")
    emulated_device.break_kernels("argmax_kernel")
    try:
        found = [run_check(*pair, DEVICE, References()) for pair in planned([case], DEVICE)]
    finally:
        emulated_device.break_kernels("")
    assert OK not in {check.status for check in found}


def test_every_operator_with_a_kernel_there_is_in_the_sample():
    about_cpus = {
        "_atrous_conv2d_suits_filters",
        "_fingerprint",
        "_set_highest_precision",
    }
    assert set(operators()) - about_cpus <= {case.operator for case in sample()}
