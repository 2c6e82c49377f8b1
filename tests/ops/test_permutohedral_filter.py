"""ops.permutohedral_filter: literal cases, pydensecrf's numbers, reference, gradients, contract."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from atrousx.ops import PermutohedralLattice, _permutohedral_lattice, permutohedral_filter
from atrousx.ops._permutohedral_lattice import Lattice, assemble_by_sorting, build_lattice
from atrousx.ops.permutohedral_filter import NORMALIZATIONS
from tests.ops.common import FLOATING, assert_same_bits_with_any_threads, strided_views, to_float64
from tests.reference import permutohedral as reference

GOLDENS = sorted((Path(__file__).parents[1] / "goldens" / "pydensecrf").glob("phl_*.npz"))
ops = torch.ops.atrousx
apply_op = ops._permutohedral_apply.default


def random_case(channels=3, dims=2, size=(4, 5), batch=2, dtype=torch.float64, device="cpu"):
    values = torch.randn(batch, channels, *size, dtype=dtype, device=device)
    features = 2 * torch.randn(batch, dims, *size, dtype=dtype, device=device)
    return values, features


# In one dimension the lattice is a line with a vertex every sqrt(3)/2. Each of the two axes blurs
# along it with (1/2, 1, 1/2), where there are vertices. The slice multiplies by 1 / (1 + 1/2).


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


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dims", [2, 5, 16])
def test_large_features_need_wider_keys(device, dims, scale):
    # Points come in pairs, so that neighbours contribute at any scale.
    values, features = random_case(dims=dims, size=(8,), dtype=torch.float32, device=device)
    features = features * (scale / features.abs().max())
    features[..., 1::2] = features[..., ::2]
    exact = reference.filter_images(to_float64(values), to_float64(features))
    result = permutohedral_filter(values, features)
    # Below 2^15 coordinates are float32 as in pydensecrf. Weights then have an error of up to 2^-9.
    np.testing.assert_allclose(to_float64(result), exact, atol=2e-2 if scale < 1e5 else 1e-5)


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


def test_lattice_indices_of_64_bits(device):
    values, features = random_case(device=device)
    lattice = build_lattice(features.flatten(2))
    rows = values.flatten(2).movedim(1, 2).flatten(0, 1)
    wide = [t if t.is_floating_point() else t.long() for t in lattice]
    for transpose in (False, True):
        narrow = apply_op(rows, *lattice, None, None, transpose)
        assert torch.equal(apply_op(rows, *wide, None, None, transpose), narrow)


def test_lattice_is_what_it_says(device):
    _, features = random_case(dims=3, device=device)
    lattice = build_lattice(features.flatten(2))
    vertices, points = lattice.neighbours.shape[2], len(lattice.corner_vertices)
    weights = lattice.corner_weights
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    splat = torch.zeros(vertices, points, device=device, dtype=weights.dtype)
    splat[lattice.corner_vertices.T.long(), torch.arange(points, device=device)] = weights.T
    for m in range(vertices):
        run = slice(int(lattice.starts[m]), int(lattice.starts[m + 1]))
        at = lattice.entry_points[run].long()
        assert (at.diff() >= 0).all()
        torch.testing.assert_close(splat[m, at], lattice.entry_weights[run])
    for ahead, behind in lattice.neighbours.unbind():
        there = (ahead >= 0).nonzero().flatten()
        assert torch.equal(behind[ahead[there].long()].long(), there)


def in_order_of_first_touch(lattice):
    """Returns the same lattice, with vertices numbered in the order in which corners reach them."""
    corners, vertices = lattice.corner_vertices.flatten().long(), lattice.neighbours.shape[2]
    first = torch.full((vertices,), len(corners))
    order = first.scatter_reduce(0, corners, torch.arange(len(corners)), "amin").argsort()
    number = torch.empty_like(order).scatter_(0, order, torch.arange(vertices))
    counts = lattice.starts.diff()[order].long()
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    entries = torch.arange(len(corners)) + torch.repeat_interleave(
        lattice.starts[order] - starts[:-1], counts
    )
    neighbours = lattice.neighbours[:, :, order].long()
    return Lattice(
        lattice.corner_weights,
        number[lattice.corner_vertices.long()],
        starts,
        lattice.entry_points[entries],
        lattice.entry_weights[entries],
        torch.where(neighbours < 0, neighbours, number[neighbours.clamp_min(0)]),
    )


# Features on a coarse grid lie on edges of simplices. 5e4 needs keys of several words.
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 5e4])
@pytest.mark.parametrize("dims", [1, 2, 5, 7, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lattice_of_the_cpu_against_the_sorted_oracle(dtype, dims, scale):
    for images, points in ((1, 1), (2, 7), (3, 501)):
        features = scale * torch.randn(images, dims, points, dtype=dtype)
        if scale == 30:
            features = features.round() / 3
        expected = in_order_of_first_touch(Lattice(*assemble_by_sorting(features)))
        for got, wanted in zip(build_lattice(features), expected, strict=True):
            assert torch.equal(got.to(wanted.dtype), wanted)


@pytest.mark.parametrize("capacity", [10**6, 300, 40, 1])
def test_more_corners_than_are_sorted_at_once(device, monkeypatch, capacity):
    """With any limit of PyTorch's sort, even below one image, the lattice is bit-identical."""
    for scale, dims in ((0.0, 3), (1.0, 3), (1e4, 20)):  # one vertex, several, keys of two words
        features = scale * torch.randn(3, dims, 50, device=device)
        features[:, :, ::7] = 0
        expected = assemble_by_sorting(features)
        monkeypatch.setattr(_permutohedral_lattice, "_SORT_CAPACITY", capacity)
        sorted_at_once = []
        monkeypatch.setattr(torch.Tensor, "sort", spy_on_sort(sorted_at_once))
        got = assemble_by_sorting(features)
        monkeypatch.undo()
        assert max(sorted_at_once, default=0) <= capacity
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def spy_on_sort(sizes):
    sort = torch.Tensor.sort

    def spy(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return sort(tensor, *args, **kwargs)

    return spy


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


def test_opcheck_of_the_builders(device):
    _, features = random_case(dims=3, device=device)
    features = features.flatten(2)
    torch.library.opcheck(ops._permutohedral_embed.default, (features,))
    base, rank, weights = ops._permutohedral_embed(features)
    torch.library.opcheck(ops._permutohedral_embed_backward.default, (weights, rank))
    layout = ([0, 0, 0, 1], [10**8, 10**4, 1, 1], [0, -400, -400, -400])
    torch.library.opcheck(ops._permutohedral_pack.default, (base, rank, *layout))
    keys = torch.arange(5, device=device)[None]
    steps = torch.tensor([[1], [3]], device=device)
    torch.library.opcheck(ops._permutohedral_neighbours.default, (keys, steps))
    expected = [[[1, 2, 3, 4, -1], [-1, 0, 1, 2, 3]], [[3, 4, -1, -1, -1], [-1, -1, -1, 0, 1]]]
    assert ops._permutohedral_neighbours(keys, steps).tolist() == expected
    lattice = build_lattice(features)
    rows = torch.randn(40, 3, dtype=torch.float64, device=device)
    arguments = (rows, rows, *lattice, False)
    torch.library.opcheck(ops._permutohedral_corner_product.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [1, 5, 32])
def test_simplices_enclose_their_points(device, dims, dtype):
    # Up to the largest coordinates that Python accepts.
    scale = torch.logspace(-3, math.log10(2**29 / (dims + 1) ** 2), 40)
    features = ((2 * torch.rand(1, dims, 40) - 1) * scale).to(device, dtype)
    base, rank, weights = (t[0].cpu().numpy() for t in ops._permutohedral_embed(features))
    assert (base % (dims + 1) == 0).all()
    assert (base.sum(1) == 0).all()
    assert (np.sort(rank, axis=1) == np.arange(dims + 1)).all()
    # The barycentric combination of the vertices is the point.
    k = np.arange(dims + 1)
    wrapped = rank[:, :, None] > dims - k
    vertices = base[:, :, None] + k - (dims + 1) * wrapped  # [P, D + 1, vertex]
    combined = (vertices * weights[:, None, :]).sum(2)
    elevated = to_float64(features)[0].T @ reference.projection(dims).T
    # In float32 a coordinate below 2^15 is accurate to 2^-9, and weights are rounded again.
    tolerance = 1e-5 * np.abs(elevated).max(1) + 1e-5
    assert (np.abs(combined - elevated).max(1) <= tolerance * (dims + 1)).all()
    assert (weights >= -1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_coordinates_are_held_within_bounds(device, dtype):
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9], dtype=dtype)
    features = torch.stack(torch.meshgrid(bad, bad, bad, indexing="ij")).view(1, 3, -1)
    base, rank, _ = ops._permutohedral_embed(features.to(device))
    assert base.abs().max() <= 2**30 + 4
    assert rank.max() <= 3


def test_neighbours_of_keys_of_two_words_by_hand(device):
    # (0, 1), (0, 2), (1, 1), (1, 9) and the step (1, 0).
    keys = torch.tensor([[0, 0, 1, 1], [1, 2, 1, 9]], device=device)
    found = ops._permutohedral_neighbours(keys, torch.tensor([[1, 0]], device=device))
    assert found.tolist() == [[[2, -1, -1, -1], [-1, -1, 0, -1]]]


def test_scales_multiply_points_in_and_out(device):
    values, features = random_case(dims=3, device=device)
    lattice = build_lattice(features.flatten(2))
    rows = values.flatten(2).movedim(1, 2).flatten(0, 1)
    before, after = (1 + torch.rand_like(rows[:, :1]) for _ in range(2))
    plain = apply_op(rows * before, *lattice, None, None, False) * after
    torch.testing.assert_close(apply_op(rows, *lattice, before, after, False), plain)


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


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_lattice_filters_any_values(device, normalization):
    values, features = random_case(device=device)
    lattice = PermutohedralLattice(features, normalization)
    for given in (values, values[:, :1], values.to(memory_format=torch.channels_last)):
        result = lattice.filter(given)
        assert torch.equal(result, permutohedral_filter(given, features, normalization))
        assert result.stride() == permutohedral_filter(given, features, normalization).stride()
    assert lattice.vertices > 0


def test_gradients_go_through_a_lattice(device):
    values, features = random_case(device=device)
    features.requires_grad_()
    lattice = PermutohedralLattice(features)
    result = lattice.filter(values) + lattice.filter(2 * values)
    (gradient,) = torch.autograd.grad(result.square().sum(), features)
    once = 3 * permutohedral_filter(values, features)
    (expected,) = torch.autograd.grad(once.square().sum(), features)
    torch.testing.assert_close(gradient, expected)


def test_a_lattice_of_other_dtypes_and_of_nothing(device):
    values, features = random_case(dtype=torch.float16, device=device)
    result = PermutohedralLattice(features).filter(values.double())
    assert result.dtype == torch.float64
    expected = permutohedral_filter(values.float(), features.float())
    torch.testing.assert_close(result.float(), expected)
    empty = PermutohedralLattice(torch.zeros(0, 3, 5, device=device))
    assert empty.filter(torch.zeros(0, 2, 5, device=device)).shape == (0, 2, 5)
    assert empty.vertices == 0


def test_rejections_of_a_lattice():
    with pytest.raises(ValueError, match="features must have 1 to 32 per point, got shape"):
        PermutohedralLattice(torch.zeros(3))
    with pytest.raises(ValueError, match="normalization must be one of"):
        PermutohedralLattice(torch.zeros(1, 2, 3), "both")
    lattice = PermutohedralLattice(torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match=r"sizes of the features, \(1, 4, 5\), got .*\(1, 3, 5, 4"):
        lattice.filter(torch.zeros(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="on the device of the features"):
        lattice.filter(torch.zeros(1, 3, 4, 5, device="meta"))
