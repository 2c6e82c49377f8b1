"""Every host-executed kernel once more, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os

import pytest

from tests.emulator.build import HERE, run_sanitized


@pytest.mark.skipif(
    os.environ.get("ATROUSX_EMULATOR") == "sanitized", reason="this is the sanitized run"
)
def test_kernels_run_clean_under_sanitizers():
    # confcutdir keeps tests/conftest.py, and with it torch, out of the sanitized process.
    arguments = ["-m", "pytest", str(HERE), f"--confcutdir={HERE}", "-p", "no:cacheprovider"]
    result = run_sanitized(*arguments, "-x", "--deselect", f"{HERE}/test_sanitizers.py")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
