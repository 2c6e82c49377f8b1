"""Shared parts of the operators' tests: accuracy, layouts, determinism across threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atrousx import _library

FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMATS = [torch.contiguous_format, torch.channels_last]


def multiplies_bfloat16_pairs() -> bool:
    """Whether the CPU kernels use AVX512-BF16, which multiplies bfloat16 in pairs."""
    cpu = Path("/proc/cpuinfo")
    has = cpu.is_file() and " avx512_bf16" in cpu.read_text()
    hidden = os.environ.get("ATROUSX_CPU") == "avx512"
    return has and not hidden and _library.core.cpu_isa == "avx512"


def to_float64(tensor: Tensor) -> NDArray[np.float64]:
    result: NDArray[np.float64] = tensor.detach().to("cpu", torch.float64).numpy()
    return result


def assert_as_accurate_as_torch(
    actual: Tensor, torch_result: Tensor, exact: NDArray[np.float64]
) -> None:
    """Asserts that the error against float64 is at most twice PyTorch's own in the same dtype.

    Errors are Euclidean norms, because the maximum over a small tensor varies by chance. If PyTorch
    happens to be exact, two roundings of every value are still allowed.
    """
    assert actual.dtype == torch_result.dtype
    assert actual.shape == torch_result.shape == exact.shape
    error = np.linalg.norm(to_float64(actual) - exact)
    torch_error = np.linalg.norm(to_float64(torch_result) - exact)
    rounding = 2 * torch.finfo(actual.dtype).eps * np.linalg.norm(exact)
    # The order of max() matters if PyTorch's error is NaN, as it was in float16 channels_last
    # gradients.
    assert error <= max(rounding, 2 * torch_error), (
        f"error {error:.3g}, PyTorch's {torch_error:.3g}, two roundings {rounding:.3g}"
    )


def strided_views(tensor: Tensor) -> list[Tensor]:
    """Returns the same values with other strides: a gap between columns, and a permutation."""
    gapped = torch.empty(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    gapped = gapped.to(tensor.device)[..., ::2].copy_(tensor)
    permuted = tensor.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    return [gapped, permuted]


def assert_same_bits_with_any_threads(run: Callable[[], Tensor]) -> None:
    """Asserts that results are bit-identical from run to run and for any number of threads."""
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, threads):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])
