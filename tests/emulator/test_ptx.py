"""The host twins of csrc/ptx.cuh against the PTX manual's layouts and NumPy's matrix product."""

from __future__ import annotations

import numpy as np
import pytest

LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4


def words(pairs):
    """Two 16-bit values to a register, the first in the low half; 32-bit values as they are."""
    return np.ascontiguousarray(pairs).view(np.uint32)


def as_bits(values, kind):
    """Values as the registers hold them."""
    values = np.asarray(values, np.float32)
    if kind == "float16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bfloat16" else bits


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(emulated, transposed):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    registers = emulated.load_matrices(matrices, transposed)
    for q, matrix in enumerate(matrices):
        seen = matrix.T if transposed else matrix
        expected = words(seen[GROUP[:, None], 2 * MEMBER[:, None] + [0, 1]])
        np.testing.assert_array_equal(registers[:, q], expected[:, 0])


# The manual's fragments of mma.m16n8k16 (16-bit) and m16n8k8 (TF32): for element i of a lane's
# fragment, its row and column, written as the manual writes them.
def left_elements(kind):
    if kind == "tf32":
        return [(GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)) for i in range(4)]
    return [(GROUP + 8 * (i // 2 % 2), MEMBER * 2 + i % 2 + 8 * (i // 4)) for i in range(8)]


def right_elements(kind):
    if kind == "tf32":
        return [(MEMBER + 4 * i, GROUP) for i in range(2)]
    return [(MEMBER * 2 + i % 2 + 8 * (i // 2), GROUP) for i in range(4)]


RESULT_ELEMENTS = [(GROUP + 8 * (i // 2), MEMBER * 2 + i % 2) for i in range(4)]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "tf32"])
def test_multiply_matrices(emulated, kind):
    rng = np.random.default_rng(0)
    depth = 8 if kind == "tf32" else 16
    # Small integers, exact in every type: any element out of place changes the result.
    a, b, c = (
        rng.integers(-8, 8, shape).astype(np.float32)
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    left = words(np.stack([as_bits(a, kind)[at] for at in left_elements(kind)], axis=1))
    right = words(np.stack([as_bits(b, kind)[at] for at in right_elements(kind)], axis=1))
    sums = np.stack([c[at] for at in RESULT_ELEMENTS], axis=1)
    result = emulated.multiply_matrices(kind, left, right, sums)
    expected = a @ b + c
    for i, at in enumerate(RESULT_ELEMENTS):
        np.testing.assert_array_equal(result[:, i], expected[at])


def test_tf32_product_ignores_the_bits_that_rounding_clears(emulated):
    left = np.full((32, 4), np.float32(1).view(np.uint32) | 0x1FFF, np.uint32)
    right = np.full((32, 2), np.float32(1).view(np.uint32), np.uint32)
    result = emulated.multiply_matrices("tf32", left, right, np.zeros((32, 4), np.float32))
    assert (result == 8).all()


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.0, 1.0),
        (1 + 2.0**-11, 1 + 2.0**-10),  # a tie goes away from zero
        (-1 - 2.0**-11, -1 - 2.0**-10),
        (1 + 2.0**-12, 1.0),
        (np.inf, np.inf),
        (2.0**-130, 2.0**-130),
    ],
)
def test_round_to_tf32(emulated, value, rounded):
    bits = emulated.round_to_tf32(int(np.float32(value).view(np.uint32)))
    assert np.uint32(bits).view(np.float32) == np.float32(rounded)


VALUES = np.arange(256, dtype=np.float32).reshape(2, 32, 4)


def test_async_copies_are_there_after_the_wait(emulated):
    np.testing.assert_array_equal(emulated.async_reverse(VALUES, 0, 32, 0), VALUES[:, ::-1])


def test_absent_async_copies_write_zeros(emulated):
    expected = np.where(LANES[:, None] < 20, VALUES, 0)[:, ::-1]
    np.testing.assert_array_equal(emulated.async_reverse(VALUES, 0, 20, 0), expected)


def test_planted_missing_wait_is_seen(emulated):
    emulated.set_eager_copies(False)
    newest_under_way = emulated.async_reverse(VALUES, 1, 32, 0)
    np.testing.assert_array_equal(newest_under_way[0], VALUES[0, ::-1])
    assert np.isnan(newest_under_way[1]).all()
    assert np.isnan(emulated.async_reverse(VALUES, 2, 32, 0)).all()


def test_planted_early_overwrite_is_seen(emulated):
    old = -VALUES[:, ::-1]
    emulated.set_eager_copies(True)
    assert (emulated.async_overwrite(VALUES, False) != old).any()
    np.testing.assert_array_equal(emulated.async_overwrite(VALUES, True), old)


def test_misaligned_async_copy_is_refused(emulated):
    with pytest.raises(RuntimeError, match="misaligned asynchronous copy"):
        emulated.async_reverse(VALUES, 0, 32, 1)
