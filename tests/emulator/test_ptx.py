"""Compares the host twins of csrc/cuda/ptx.cuh with the PTX manual and PyTorch's matrix product."""

from __future__ import annotations

import pytest
import torch

from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated
LANES = torch.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4
KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}


@pytest.fixture(params=["forward", "reverse"])
def ptx(emulated_device, request):
    emulated_device.set_order(reverse=request.param == "reverse")
    return torch.ops.atrousx_ptx


def words(elements):
    """Returns registers: each holds two 16-bit values, the first in the low half, or one 32-bit
    value."""
    return elements.contiguous().view(torch.int32).to(NAME)


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(ptx, transposed):
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    registers = ptx.load_matrices(matrices.to(NAME), transposed)
    for q, matrix in enumerate(matrices):
        seen = matrix.T if transposed else matrix
        expected = words(seen[GROUP[:, None], 2 * MEMBER[:, None] + torch.arange(2)])
        assert torch.equal(registers[:, q], expected[:, 0])


# The manual's fragments of mma.m16n8k16 (16-bit) and m16n8k8 (TF32): the row and column of each
# element of a lane's fragment, written as in the manual.
def left_elements(kind):
    if kind == "tf32":
        return [(GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)) for i in range(4)]
    return [(GROUP + 8 * (i // 2 % 2), MEMBER * 2 + i % 2 + 8 * (i // 4)) for i in range(8)]


def right_elements(kind):
    if kind == "tf32":
        return [(MEMBER + 4 * i, GROUP) for i in range(2)]
    return [(MEMBER * 2 + i % 2 + 8 * (i // 2), GROUP) for i in range(4)]


RESULT_ELEMENTS = [(GROUP + 8 * (i // 2), MEMBER * 2 + i % 2) for i in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_matrices(ptx, kind):
    depth = 8 if kind == "tf32" else 16
    # Small integers are exact in every type. So any element in a wrong place changes the result.
    a, b, c = (torch.randint(-8, 8, shape).float() for shape in ((16, depth), (depth, 8), (16, 8)))
    left, right = (
        words(torch.stack([m[at] for at in elements(kind)], 1).to(KINDS[kind]))
        for m, elements in ((a, left_elements), (b, right_elements))
    )
    sums = torch.stack([c[at] for at in RESULT_ELEMENTS], 1).to(NAME)
    result = ptx.multiply_matrices(list(KINDS).index(kind), left, right, sums).cpu()
    expected = a @ b + c
    for i, at in enumerate(RESULT_ELEMENTS):
        assert torch.equal(result[:, i], expected[at])


def test_tf32_product_ignores_the_bits_that_rounding_clears(ptx):
    left = words(torch.ones(32, 4)) | 0x1FFF
    right = words(torch.ones(32, 2))
    result = ptx.multiply_matrices(2, left, right, torch.zeros(32, 4, device=NAME))
    assert (result == 8).all()


def test_round_to_tf32(ptx):
    rounded = {
        1.0: 1.0,
        1 + 2.0**-11: 1 + 2.0**-10,  # a tie is rounded away from zero
        -1 - 2.0**-11: -1 - 2.0**-10,
        1 + 2.0**-12: 1.0,
        torch.inf: torch.inf,
        2.0**-130: 2.0**-130,
    }
    values, expected = (
        torch.tensor([*numbers, *[0.0] * (32 - len(rounded))])
        for numbers in (rounded.keys(), rounded.values())
    )
    assert torch.equal(ptx.round_to_tf32(words(values)).view(torch.float32).cpu(), expected)


@pytest.fixture
def values(emulated_device):
    return torch.arange(256.0, device=NAME).view(2, 32, 4)


def test_async_copies_are_there_after_the_wait(ptx, values):
    assert torch.equal(ptx.async_reverse(values, 0, 32, 0), values.flip(1))


def test_absent_async_copies_write_zeros(ptx, values):
    expected = torch.where(LANES[:, None] < 20, values.cpu(), 0).flip(1)
    assert torch.equal(ptx.async_reverse(values, 0, 20, 0).cpu(), expected)


def test_missing_wait_is_seen(emulated_device, values):
    # In this order copies are as late as possible.
    emulated_device.set_order(reverse=False)
    ptx = torch.ops.atrousx_ptx
    newest_under_way = ptx.async_reverse(values, 1, 32, 0)
    assert torch.equal(newest_under_way[0], values[0].flip(0))
    assert newest_under_way[1].isnan().all()
    assert ptx.async_reverse(values, 2, 32, 0).isnan().all()


def test_early_overwrite_is_seen(emulated_device, values):
    # In this order copies are done at once.
    emulated_device.set_order(reverse=True)
    ptx = torch.ops.atrousx_ptx
    old = -values.flip(1)
    assert (ptx.async_overwrite(values, False) != old).any()
    assert torch.equal(ptx.async_overwrite(values, True), old)


def test_misaligned_async_copy_is_refused(ptx, values):
    with pytest.raises(RuntimeError, match="misaligned asynchronous copy"):
        ptx.async_reverse(values, 0, 32, 1)
