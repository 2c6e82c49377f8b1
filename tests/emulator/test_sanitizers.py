"""Every host-executed kernel once more, under AddressSanitizer and UBSan."""

from __future__ import annotations

from tests.emulator.build import HERE, run_sanitized


def test_kernels_run_clean_under_sanitizers():
    # confcutdir keeps tests/conftest.py, and with it torch, out of the sanitized process.
    arguments = ["-m", "pytest", str(HERE), f"--confcutdir={HERE}", "-p", "no:cacheprovider"]
    # The device in host memory is PyTorch's: torch stays out of this process.
    ignored = (__file__, HERE / "test_device.py")
    result = run_sanitized(*arguments, *(f"--ignore={path}" for path in ignored))
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
