"""The host executor itself: it runs correct kernels correctly and catches planted errors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.build import run_sanitized


def test_barrier_makes_writes_visible(emulated):
    values = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(emulated.reverse(values, True), values[::-1])


def test_planted_missing_barrier_is_seen(emulated):
    values = np.arange(64, dtype=np.float32)
    result = emulated.reverse(values, False)
    wrong = result != values[::-1]
    assert wrong.any()
    assert np.isnan(result[wrong]).all()  # shared memory is poisoned until it is written


def test_planted_divergent_barrier_is_named(emulated):
    with pytest.raises(
        RuntimeError, match=r"divergent barrier: thread .* at .*planted_bindings.cpp"
    ):
        emulated.divergent()


def test_launch_that_cuda_refuses_is_refused(emulated):
    with pytest.raises(RuntimeError, match="invalid launch configuration"):
        emulated.too_many_threads()


@pytest.mark.parametrize("threads", [1, 32, 40, 64])
def test_warp_collectives(emulated, threads):
    values = np.arange(1, threads + 1, dtype=np.int32)
    sums, ballots = emulated.warp_sum(values)
    for warp in range(0, threads, 32):
        lanes = values[warp : warp + 32]
        odd = sum(1 << i for i, value in enumerate(lanes) if value % 2)
        assert (sums[warp : warp + 32] == lanes.sum()).all()
        assert (ballots[warp : warp + 32] == odd).all()


@pytest.mark.parametrize("memory", ["global", "shared"])
def test_planted_overrun_is_caught_by_the_sanitizer(memory):
    code = "from tests.emulator.build import load; load('sanitized').overrun({}, {})"
    clean = run_sanitized("-c", code.format(0, memory == "shared"))
    assert clean.returncode == 0, clean.stderr
    planted = run_sanitized("-c", code.format(1, memory == "shared"))
    assert planted.returncode != 0
    assert "heap-buffer-overflow" in planted.stderr
