"""Literal cases, pydensecrf's numbers, the float64 oracle, dtypes and strides."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from atrousx.ops import permutohedral_filter
from atrousx.ops._permutohedral_lattice import build_lattice
from atrousx.ops.permutohedral_filter import NORMALIZATIONS
from tests.ops.common import FLOATING, assert_same_bits_with_any_threads, strided_views, to_float64
from tests.ops.permutohedral_filter.cases import apply_op, ops, random_case
from tests.reference import permutohedral as reference

GOLDENS = sorted((Path(__file__).parents[2] / "goldens" / "pydensecrf").glob("phl_*.npz"))


def test_point_on_a_vertex_by_hand(device):
    # All weight is on one vertex, beside the simplex's other vertex: 1 + 1/4, times 2/3.
    one = torch.ones(1, 1, 1, device=device)
    result = permutohedral_filter(one, torch.zeros_like(one), "none")
    torch.testing.assert_close(result, 5 / 6 * one)


def test_point_between_vertices_by_hand(device):
    # 1/2 on each of two vertices. Each blur multiplies by 3/2: 1/2 * 9/4 * 2/3.
    one = torch.ones(1, 1, 1, device=device)
    result = permutohedral_filter(one, math.sqrt(3) / 4 * one, "none")
    torch.testing.assert_close(result, 0.75 * one)


def test_equal_points_are_averaged_and_far_ones_are_left(device):
    values = torch.tensor([[[1.0, 3.0, 5.0]]], device=device)
    features = torch.tensor([[[0.0, 0.0, 50.0]]], device=device)
    expected = torch.tensor([[[2.0, 2.0, 5.0]]], device=device)
    torch.testing.assert_close(permutohedral_filter(values, features, "after"), expected)
    # "symmetric": both points at 0 have K = 5/3, and each gets 5/6 of their sum.
    torch.testing.assert_close(permutohedral_filter(values, features), expected)


def test_filter_is_nearly_the_gaussian():
    # The response as a function of the distance of two points, averaged over positions on the
    # lattice.
    x = 0.1 * torch.arange(160, dtype=torch.float64)
    impulses = torch.eye(160, dtype=torch.float64)[None]
    kernel = permutohedral_filter(impulses, x[None, None], "none")[0]
    response = torch.stack([kernel.diagonal(d).mean() for d in range(80)])
    gaussian = torch.exp(-0.5 * x[:80] ** 2)
    assert (response / response[0] - gaussian).abs().max() < 0.05


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_pydensecrf_golden(device, path):
    golden = np.load(path)
    points = len(golden["q"])
    # pydensecrf adds points at the origin up to a multiple of 4.
    padding = ((0, -points % 4), (0, 0))
    features = torch.from_numpy(np.pad(golden["features"], padding)).T[None].to(device)
    values = torch.from_numpy(np.pad(golden["q"], padding)).T[None].to(device)
    ones = torch.zeros_like(values[:, :1])
    ones[..., :points] = 1
    assert build_lattice(features.contiguous()).neighbours.shape[2] == golden["M"]
    for given, name in ((values, "out"), (ones, "ones_out")):
        result = permutohedral_filter(given, features, "none")[0, :, :points].T
        np.testing.assert_allclose(result.cpu().numpy(), golden[name], rtol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5, 6, 16])
def test_against_oracle(device, dims, normalization):
    values, features = random_case(dims=dims, device=device)
    exact = reference.filter_images(to_float64(values), to_float64(features), normalization)
    result = permutohedral_filter(values, features, normalization)
    np.testing.assert_allclose(to_float64(result), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("size", [(), (7,), (3, 4), (2, 3, 2)])
def test_dtypes_and_spatial_ranks(device, size, dtype):
    values, features = random_case(dims=3, size=size, dtype=dtype, device=device)
    exact = reference.filter_images(to_float64(values), to_float64(features))
    result = permutohedral_filter(values, features)
    assert result.dtype == dtype
    # Half types are rounded once, at the end. Float32 weights have the rounding error of
    # coordinates.
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6 + torch.finfo(dtype).eps
    np.testing.assert_allclose(to_float64(result), exact, rtol=tolerance, atol=tolerance)


def test_autocast_computes_in_float32(device):
    values, features = random_case(dtype=torch.float32, device=device)
    expected = permutohedral_filter(values, features)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(permutohedral_filter(values, features), expected)
        half = permutohedral_filter(values.bfloat16(), features)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("channels", [1, 2, 17, 300])
def test_any_number_of_channels(device, channels):
    values, features = random_case(channels=channels, device=device)
    exact = reference.filter_images(to_float64(values), to_float64(features))
    result = permutohedral_filter(values, features)
    np.testing.assert_allclose(to_float64(result), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (1, 2, 0, 4)])
def test_empty(device, shape):
    values = torch.zeros(shape, device=device, requires_grad=True)
    features = torch.zeros(shape[0], 3, *shape[2:], device=device)
    result = permutohedral_filter(values, features)
    assert result.shape == shape
    result.sum().backward()
    assert values.grad is not None


def test_constant_features(device):
    values = torch.arange(12.0, device=device).reshape(1, 1, 3, 4)
    result = permutohedral_filter(values, torch.full_like(values, 7.25), "after")
    torch.testing.assert_close(result, torch.full_like(values, 5.5))


def test_images_of_a_batch_do_not_meet(device):
    values, features = random_case(dims=5, size=(6, 7), batch=3, dtype=torch.float32, device=device)
    features[1] = features[0]
    features[2] *= 1e4
    together = permutohedral_filter(values, features)
    for n in range(3):
        alone = permutohedral_filter(values[n : n + 1], features[n : n + 1])
        assert torch.equal(together[n : n + 1], alone)


def test_strides_and_memory_formats(device):
    values, features = random_case(dims=3, device=device)
    expected = permutohedral_filter(values, features)
    assert expected.is_contiguous()
    for v, f in zip(strided_views(values), strided_views(features), strict=True):
        torch.testing.assert_close(permutohedral_filter(v, f), expected, rtol=0, atol=0)
    last = permutohedral_filter(values.to(memory_format=torch.channels_last), features)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)


def test_same_bits_with_any_threads():
    values, features = random_case(21, 5, (40, 50), 1, torch.float32)
    values.requires_grad_()
    features.requires_grad_()

    def run():
        result = permutohedral_filter(values, features)
        grads = torch.autograd.grad(result.square().sum(), (values, features))
        return torch.cat([t.flatten() for t in (result, *grads)])

    assert_same_bits_with_any_threads(run)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients(device, normalization):
    values, features = random_case(2, 3, (3, 3), batch=1, device=device)
    values.requires_grad_()

    def in_values(v):
        return permutohedral_filter(v, features.detach(), normalization)

    assert torch.autograd.gradcheck(in_values, (values,))
    assert torch.autograd.gradgradcheck(in_values, (values,), fast_mode=True)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, f: permutohedral_filter(v, f, normalization), (values, features)
    )


def test_second_derivative_in_features_is_refused(device):
    values, features = random_case(device=device)
    features.requires_grad_()
    result = permutohedral_filter(values, features).square().sum()
    (grad,) = torch.autograd.grad(result, features, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative with respect to features"):
        grad.sum().backward()


def test_transpose_is_the_adjoint(device):
    _, features = random_case(dims=4, batch=1, device=device)
    lattice = build_lattice(features.flatten(2))
    identity = torch.eye(20, dtype=torch.float64, device=device)
    forward = apply_op(identity, *lattice, None, None, False)
    backward = apply_op(identity, *lattice, None, None, True)
    torch.testing.assert_close(backward, forward.T)
    assert not torch.allclose(forward, forward.T)  # not symmetric, so this test can fail


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(device, grad):
    values, features = random_case(dims=3, device=device)
    features = features.flatten(2).requires_grad_(grad)
    rows = values.flatten(2).movedim(1, 2).flatten(0, 1).requires_grad_(grad)
    torch.library.opcheck(ops._permutohedral_build.default, (features,))
    torch.library.opcheck(ops._permutohedral_assemble.default, (features.detach(),))
    lattice = [t.detach() for t in build_lattice(features)]
    lattice[0].requires_grad_(grad)
    torch.library.opcheck(apply_op, (rows, *lattice, None, None, False))
    scale = torch.rand(len(rows), 1, dtype=rows.dtype, device=device)
    torch.library.opcheck(apply_op, (rows, *lattice, scale, None, True))


def test_compiles_whole(device):
    values, features = random_case(device=device)
    compiled = torch.compile(permutohedral_filter, fullgraph=True, backend="aot_eager")
    values.requires_grad_()
    torch.testing.assert_close(compiled(values, features), permutohedral_filter(values, features))
    with pytest.raises(ValueError, match="features must be finite"):
        compiled(values, features * math.nan)


V, F = torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((V.numpy(), F), TypeError, r"values must be a torch.Tensor, got ndarray"),
        ((V, F.long()), TypeError, r"features must be float32, .* got int64"),
        ((V, F, "both"), ValueError, r"normalization must be one of .* got 'both'"),
        (
            (V[0, 0, 0], F[0, 0, 0]),
            ValueError,
            r"values must have a shape \[N, C, \*\], got \(5,\)",
        ),
        ((V, F[:1]), ValueError, r"features must have the batch .* got shape \(1, 5, 4, 5\)"),
        ((V, F[:, :, :3]), ValueError, r"features must have the batch .* got shape \(2, 5, 3, 5\)"),
        ((V, F.flatten(2)), ValueError, r"features must have the batch .* got shape \(2, 5, 20\)"),
        ((V, F[:, :0]), ValueError, r"features must have 1 to 32 per point, got shape \(2, 0"),
        ((V, F.expand(7, 2, 5, 4, 5).movedim(0, 1).flatten(1, 2)), ValueError, "1 to 32 per point"),
        ((V, F + math.nan), ValueError, "features must be finite, got NaN or infinity"),
        ((V, F - math.inf), ValueError, "features must be finite, got NaN or infinity"),
        ((V, F + 1e9), ValueError, r"features must be at most .* got 1e\+09.*larger sigma"),
        ((V, F.to("meta")), RuntimeError, r"features must be on the device of values \(cpu\)"),
    ],
)
def test_rejections(arguments, error, message):
    with pytest.raises(error, match=message):
        permutohedral_filter(*arguments)
