"""Invalid lattices: a call with one raises, and reads nothing out of bounds."""

from __future__ import annotations

import pytest
import torch

from atrousx.ops._permutohedral_lattice import Lattice, assemble_by_sorting, build_lattice
from tests.optional import given, settings, st

ops = torch.ops.atrousx
POINTS, LABELS = 12, 3
INDICES = ("corner_vertices", "starts", "entry_points", "neighbours")


def make_lattice(index=torch.int32, dims=2):
    features = torch.randn(2, dims, POINTS // 2, generator=torch.Generator().manual_seed(0))
    lattice = build_lattice(features)
    return lattice._replace(**{name: getattr(lattice, name).to(index) for name in INDICES})


def calls(lattice):
    """Returns calls of every operator that reads a lattice."""
    none = torch.empty(0)
    rows = torch.ones(POINTS, LABELS)
    logits = torch.zeros(2, LABELS, POINTS // 2)
    states = torch.full((2, POINTS, 8), 1 / 3)
    terms, weights = [*lattice, none, none, none], [1.0]
    return {
        "apply": lambda: ops._permutohedral_apply(rows, *lattice, None, None, False),
        "corner product": lambda: ops._permutohedral_corner_product(rows, rows, *lattice, True),
        "mean field": lambda: ops._mean_field(logits, terms, weights, 1),
        "states": lambda: ops._mean_field_states(logits, terms, weights, 1),
        "backward": lambda: ops._mean_field_backward(logits, states, terms, weights, True, True),
    }


def is_lattice(lattice):
    """Whether indices are valid for the operators, in plain loops."""
    vertices, corners = lattice.neighbours.shape[2], lattice.corner_vertices.numel()
    starts = lattice.starts.tolist()
    within = (
        all(0 <= v < vertices for v in lattice.corner_vertices.flatten().tolist())
        and all(0 <= p < POINTS for p in lattice.entry_points.tolist())
        and all(-1 <= v < vertices for v in lattice.neighbours.flatten().tolist())
        and starts == sorted(starts)
        and (starts[0], starts[-1]) == (0, corners)
    )
    if not within:
        return False
    for ahead, behind in lattice.neighbours.tolist():
        for first in range(vertices):
            at = first if behind[first] < 0 else -1
            while at >= 0 and ahead[at] >= 0:
                if behind[ahead[at]] != at:
                    return False
                at = ahead[at]
    return True


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_a_lattice_of_ones_own_passes(index):
    lattice = make_lattice(index)
    assert is_lattice(lattice)
    for call in calls(lattice).values():
        call()


def change(lattice, name, place, value):
    tensor = getattr(lattice, name).clone()
    tensor.view(-1)[place] = value
    return lattice._replace(**{name: tensor})


def wrong_lattices(index):
    lattice = make_lattice(index)
    vertices, most = lattice.neighbours.shape[2], torch.iinfo(index).max
    linked = int((lattice.neighbours[0, 0] >= 0).nonzero()[0])
    for name, message, values in (
        ("corner_vertices", "corner_vertices must be vertices", [-1, vertices, most, -most - 1]),
        ("entry_points", "entry_points must be points", [-1, POINTS, most, -most - 1]),
        ("neighbours", "neighbours must be vertices or -1", [-2, vertices, most, -most - 1]),
        ("starts", "starts must ascend", [-1, most, -most - 1]),
    ):
        last = getattr(lattice, name).numel() - 1
        for value in values:
            for place in (0, last // 2, last):
                yield message, change(lattice, name, place, value)
    # A cycle of neighbours, in which one link is not mutual.
    first = int(
        (lattice.neighbours[0, 1] < 0).logical_and(lattice.neighbours[0, 0] >= 0).nonzero()[0]
    )
    yield "neighbours must be mutual", change(lattice, "neighbours", linked, first)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_indices_out_of_range_raise(index):
    for message, lattice in wrong_lattices(index):
        assert not is_lattice(lattice)
        for call in calls(lattice).values():
            with pytest.raises(RuntimeError, match=message):
                call()


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_any_indices_raise_or_are_a_lattice(data):
    lattice = make_lattice(data.draw(st.sampled_from([torch.int32, torch.int64])))
    vertices = lattice.neighbours.shape[2]
    for name in data.draw(st.lists(st.sampled_from(INDICES), min_size=1, max_size=2)):
        tensor = getattr(lattice, name)
        limits = torch.iinfo(tensor.dtype)
        near = st.integers(-2, max(vertices, tensor.numel()) + 1)
        value = st.one_of(near, near, near, st.integers(limits.min, limits.max))
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, tensor.numel() - 1))
            lattice = change(lattice, name, place, data.draw(value))
    for call in calls(lattice).values():
        if is_lattice(lattice):
            call()
        else:
            with pytest.raises(RuntimeError, match="must"):
                call()


def test_tensors_that_do_not_belong_together_raise():
    lattice = make_lattice()
    wrong = [
        lattice._replace(corner_weights=lattice.corner_weights.T.contiguous()),
        lattice._replace(corner_vertices=lattice.corner_vertices[:, :1].contiguous()),
        lattice._replace(starts=lattice.starts[:-1]),
        lattice._replace(entry_points=lattice.entry_points[:-1]),
        lattice._replace(entry_weights=lattice.entry_weights[None]),
        lattice._replace(
            neighbours=lattice.neighbours[..., :0].contiguous(), starts=lattice.starts[:1]
        ),
        lattice._replace(corner_weights=lattice.corner_weights.flatten()),
        lattice._replace(entry_weights=lattice.entry_weights.double()),
        lattice._replace(entry_points=lattice.entry_points.long()),
    ]
    for foreign in wrong:
        for call in calls(foreign).values():
            with pytest.raises(RuntimeError, match="lattice"):
                call()


def test_a_lattice_has_at_most_as_many_dimensions_as_features_may_have():
    corners = torch.zeros(1, 40)
    indices = torch.zeros(1, 40, dtype=torch.int32)
    starts = torch.tensor([0, 40], dtype=torch.int32)
    neighbours = torch.full((40, 2, 1), -1, dtype=torch.int32)
    lattice = [corners, indices, starts, indices[0], corners[0], neighbours]
    with pytest.raises(RuntimeError, match="1 to 32 dimensions"):
        ops._permutohedral_apply(torch.ones(1, 1), *lattice, None, None, False)


@pytest.mark.parametrize("bad", [4, 255])
def test_ranks_above_the_dimensions_raise(bad):
    base, rank, weights = ops._permutohedral_embed(torch.randn(2, 3, 10))
    rank[1, 9, 3] = bad
    with pytest.raises(RuntimeError, match="rank must hold numbers from 0 to D"):
        ops._permutohedral_embed_backward(weights, rank)
    with pytest.raises(RuntimeError, match="rank must hold numbers from 0 to D"):
        ops._permutohedral_pack(base, rank, [0] * 4, [1] * 4, [0] * 4)


def test_key_layouts_that_no_features_have_raise_or_wrap():
    base, rank, _ = ops._permutohedral_embed(torch.randn(2, 3, 10))
    for words in ([1] * 4, [0, 2, 2, 2], [0, 0, -1, 0], [0, 0, 0, 2**40], [0] * 3):
        with pytest.raises(RuntimeError, match="key layout"):
            ops._permutohedral_pack(base, rank, words, [1] * 4, [0] * 4)
    most = 2**63 - 1
    keys = ops._permutohedral_pack(base, rank, [0, 1, 1, 1], [most] * 4, [-most] * 4)
    assert keys.shape == (2, 80)


def test_keys_that_do_not_ascend_raise():
    steps = torch.ones(1, 1, dtype=torch.int64)
    for keys in ([3, 1, 2], [1, 1]):
        with pytest.raises(RuntimeError, match="keys must ascend"):
            ops._permutohedral_neighbours(torch.tensor([keys]), steps)
    extremes = torch.tensor([[-(2**63), 2**63 - 1]])
    assert ops._permutohedral_neighbours(extremes, extremes.T[:1].contiguous()).shape == (1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_features_make_a_lattice(dtype):
    """Only Python checks magnitudes. The operator itself clamps coordinates."""
    bad = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, 0.0], dtype=dtype
    )
    features = torch.stack(torch.meshgrid(bad, bad, bad, indexing="ij")).reshape(1, 3, -1)
    lattice = Lattice(*ops._permutohedral_assemble(features))
    ops._permutohedral_apply(features[0].T, *lattice, None, None, False)
    assemble_by_sorting(
        torch.nan_to_num(features, nan=0.0, posinf=3e9, neginf=-3e9).clamp(-1e9, 1e9)
    )
