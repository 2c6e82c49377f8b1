"""Runs the kernels again under UBSan. Its first finding ends the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from building import ROOT

pytestmark = [pytest.mark.emulated, pytest.mark.slow]
# The executor's tests, and the small cases of every operator in every dtype.
SAMPLE = ("tests/emulator", "tests/ops/test_operator_contract.py::test_cases_are_valid")
LEFT_OUT = (
    "--ignore=tests/emulator/test_sanitizers.py",
    "--ignore=tests/emulator/test_plans.py",  # does not run kernels
    "--deselect=tests/emulator/test_device.py::test_misaligned_vector",  # planted; UBSan finds it
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ATROUSX_EMULATED_DEVICE": "undefined",
        "ATROUSX_EMULATED": "all",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(("value", "sound"), [(2**31 - 2, True), (2**31 - 1, False)])
def test_overflow_is_caught(value, sound):
    result = run(
        "-c",
        "import torch; from tests.emulator.device import add_device; add_device();"
        f"value = torch.tensor([{value}], dtype=torch.int32, device='emulated');"
        "print(torch.ops.atrousx_planted.next(value).item())",
    )
    assert (result.returncode == 0) == sound, result.stderr
    assert ("signed integer overflow" in result.stderr) != sound


def test_kernels_run_clean():
    # UBSan's messages on standard error must get past pytest.
    options = ("-p", "no:cacheprovider", "--capture=sys", "-m", "emulated")
    result = run("-m", "pytest", *options, *SAMPLE, *LEFT_OUT)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
