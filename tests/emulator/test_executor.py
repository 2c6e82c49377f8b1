"""Tests the host executor: it runs correct kernels as CUDA does, and detects planted faults."""

from __future__ import annotations

import pytest
import torch

from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated
BLOCK = 64
FIRST, SECOND, DYNAMIC = range(3)  # the arrays of the planted kernel in shared memory


@pytest.fixture(params=["forward", "reverse"])
def planted(emulated_device, request):
    emulated_device.set_order(reverse=request.param == "reverse")
    return torch.ops.atrousx_planted


@pytest.fixture
def values(emulated_device):
    return torch.arange(BLOCK, dtype=torch.float32, device=NAME)


def test_barrier_makes_writes_visible(planted, values):
    assert torch.equal(planted.reverse(values, True), values.flip(0))


def test_missing_barrier_is_seen(planted, values):
    result = planted.reverse(values, False).cpu()
    wrong = result != values.flip(0).cpu()
    assert wrong.any()
    assert result[wrong].isnan().all()  # shared memory is poisoned until it is written


def test_divergent_barrier_is_named(planted, values):
    with pytest.raises(
        RuntimeError, match=r"divergent barrier: thread .* at .*planted_kernels.cpp"
    ):
        planted.divergent(values, BLOCK)


def test_too_many_threads_are_refused(planted, values):
    with pytest.raises(RuntimeError, match="invalid block of 2048 threads"):
        planted.divergent(values, 2048)


@pytest.mark.parametrize("threads", [1, 32, 40, 64])
def test_warp_collectives(planted, threads):
    values = torch.arange(1, threads + 1, dtype=torch.int32)
    sums, ballots = (t.cpu() for t in planted.warp_sum(values.to(NAME)))
    for warp in range(0, threads, 32):
        lanes = values[warp : warp + 32]
        odd = sum(1 << i for i, value in enumerate(lanes.tolist()) if value % 2)
        assert (sums[warp : warp + 32] == lanes.sum()).all()
        assert all(ballot & 0xFFFFFFFF == odd for ballot in ballots[warp : warp + 32].tolist())


@pytest.mark.parametrize("array", [FIRST, SECOND, DYNAMIC])
def test_shared_memory(planted, values, array):
    assert (planted.shared_overrun(values, array, 0) == 1).all()


@pytest.mark.parametrize("shift", [1, -1, 2 * BLOCK, -2 * BLOCK])
@pytest.mark.parametrize("array", [FIRST, SECOND, DYNAMIC])
def test_overrun_of_shared_memory_is_refused(planted, values, array, shift):
    # On a GPU the arrays are adjacent, and most of these stores would change another array.
    with pytest.raises(RuntimeError, match="stored 4 bytes of memory beyond the end of a shared"):
        planted.shared_overrun(values, array, shift)


def test_grids_can_be_cut(emulated_device, planted):
    values = torch.arange(5000.0, device=NAME)
    emulated_device.set_most_blocks(1)
    assert torch.equal(planted.copy(values, 0), values)
