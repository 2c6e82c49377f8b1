"""Mean-field inference over points. Its use in DenseCRF is tested with DenseCRF."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atrousx.ops import _mean_field, _mean_field_rows
from atrousx.ops._mean_field import Term, less_message, mean_field
from atrousx.ops._permutohedral_lattice import build_lattice
from atrousx.ops.permutohedral_filter import normalizer
from tests.ops.common import to_float64
from tests.ops.operator_cases import Numbers
from tests.reference import permutohedral as reference


def make_term(
    weight, compatibility=None, device="cpu", normalization="symmetric", dtype=torch.float32
):
    lattice = build_lattice(torch.randn(1, 2, 40, device=device, dtype=dtype))
    return Term(lattice, normalizer(lattice, normalization), weight, compatibility)


@pytest.mark.parametrize("compatibility", [None, torch.rand(3, 3)], ids=["potts", "matrix"])
def test_a_weight_within_the_compatibility_is_the_same(compatibility):
    term = make_term(torch.tensor(0.7), compatibility)
    q = torch.rand(40, 3).softmax(-1)
    expected = less_message(q.log(), q, term).softmax(-1)
    folded = _mean_field._without_tensor_weight(term, 3)
    assert folded.weight == 1.0
    matrix = folded.compatibility
    matrix = matrix.diag() if compatibility is None else matrix
    result = less_message(q.log(), q, folded._replace(compatibility=matrix)).softmax(-1)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("weight", [0.7, torch.tensor(0.7)])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_any_number_of_terms(device, weight, count):
    logits = torch.randn(1, 3, 40, device=device)
    weight = weight.to(device) if isinstance(weight, torch.Tensor) else weight
    terms = [make_term(weight, device=device) for _ in range(count)]
    expected = mean_field(logits.clone().requires_grad_(), terms, 3)
    torch.testing.assert_close(mean_field(logits, terms, 3), expected.detach())


def random_inputs(labels, compatibility, normalization):
    """Returns arguments of the operators in float64: two images, two terms."""
    logits = torch.randn(2, labels, 20, dtype=torch.float64)
    matrix = {
        "potts": None,
        "diagonal": torch.randn(labels).double(),
        "matrix": torch.randn(labels, labels).double(),
    }[compatibility]
    terms = [
        make_term(weight, matrix, normalization=normalization, dtype=torch.float64)
        for weight in (0.7, -0.4)
    ]
    return logits, *_mean_field._arguments(terms, logits)


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("compatibility", ["potts", "diagonal", "matrix"])
@pytest.mark.parametrize("labels", [1, 5, 21])
def test_cpu_operators_against_oracle_of_rows(labels, compatibility, normalization):
    inputs = random_inputs(labels, compatibility, normalization)
    ops = torch.ops.atrousx
    q, states = ops._mean_field_states(*inputs, 3)
    expected_q, expected_states = _mean_field_rows.states_of_rows(*inputs, 3)
    torch.testing.assert_close(q, expected_q)
    torch.testing.assert_close(states[..., :labels], expected_states)
    assert torch.equal(q, ops._mean_field(*inputs, 3))
    grad = torch.randn_like(q)
    actual = ops._mean_field_backward(grad, states, *inputs[1:], True, True)
    rows = _mean_field_rows.gradients_of_rows(grad, expected_states, *inputs[1:], True, True)
    if compatibility == "potts":
        rows = (rows[0], torch.diag_embed(rows[1].diagonal(dim1=1, dim2=2)), *rows[2:])
    for a, b in zip(actual, rows, strict=True):
        torch.testing.assert_close(a, b)
    of_logits, *none = ops._mean_field_backward(grad, states, *inputs[1:], False, False)
    assert torch.equal(of_logits, actual[0])
    assert not any(t.numel() for t in none)


@pytest.mark.parametrize(("labels", "points"), [(1, 20), (5, 1), (1, 1)])
def test_operators_of_rows_return_memory_of_their_own(labels, points):
    case = Numbers("cpu", torch.float32)
    logits = case.normal(1, labels, points)
    q, states = _mean_field_rows.states_of_rows(logits, [], [], 2)
    expected = states.clone()
    q.zero_()
    assert torch.equal(states, expected)
    grad = case.normal(1, labels, points)
    for result in _mean_field_rows.gradients_of_rows(grad, states, [], [], True, True):
        result.zero_()
    assert torch.equal(states, expected)


def point_case(device, labels, points, dtype, images=2, dims=(2, 5)):
    """Returns logits [N, L, P] and the features of each kernel [N, D, P]."""
    logits = 2 * torch.randn(images, labels, points, dtype=dtype, device=device)
    features = [2 * torch.randn(images, d, points, dtype=dtype, device=device) for d in dims]
    return logits, features


def plain_term(features, weight, compatibility=None, scales=(None, None)):
    return Term(build_lattice(features), scales, weight, compatibility)


def infer(logits, terms, iterations):
    arguments = _mean_field._arguments(terms, logits)
    return torch.ops.atrousx._mean_field(logits, *arguments, iterations)


def check_against_reference(logits, features, costs, iterations, result):
    """``costs`` has [L, L] for each kernel. Filters are not normalised."""
    exact = np.empty(logits.shape)
    for n, rows in enumerate(to_float64(logits)):
        kernels = [(to_float64(f[n]).T, c) for f, c in zip(features, costs, strict=True)]
        exact[n] = reference.mean_field(rows.T, kernels, iterations, "none").T
    tolerance = 2e-5 if logits.dtype == torch.float32 else 1e-11
    np.testing.assert_allclose(to_float64(result), exact, rtol=0, atol=tolerance)


# From one pack of labels to many. On CUDA 1, 8 or 32 threads share a row; with 32 each has several
# packs.
@pytest.mark.parametrize(
    ("labels", "points", "dtype"),
    [
        (1, 5, torch.float32),
        (3, 40, torch.float64),
        (21, 40, torch.float32),
        (150, 3, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "matrix"])
def test_against_reference(device, labels, points, dtype, kind):
    logits, features = point_case(device, labels, points, dtype)
    weights = [0.3, 0.2]
    given, costs = [None, None], [w * (1 - np.eye(labels)) for w in weights]
    if kind == "diagonal":
        given[0] = torch.randn(labels, dtype=dtype, device=device)
        costs[0] = weights[0] * np.diag(to_float64(given[0]))
    elif kind == "matrix":
        square = {"dtype": dtype, "device": device}
        given = [torch.randn(labels, labels, **square) / labels for _ in weights]
        costs = [w * to_float64(g) for w, g in zip(weights, given, strict=True)]
    terms = [plain_term(*of_term) for of_term in zip(features, weights, given, strict=True)]
    check_against_reference(logits, features, costs, 2, infer(logits, terms, 2))


def test_points_crowded_on_few_vertices(device):
    # On CUDA a whole block sums runs of more than 256 entries, beside short ones. 70 labels in
    # float64 are more packs than a warp has lanes, so it goes over a run twice.
    logits, (features,) = point_case(device, 70, 500, torch.float64, images=1, dims=(2,))
    features[..., :330] = 0.1
    term = plain_term(features, 0.01)
    assert term.lattice.starts.diff().max() > 256
    costs = [0.01 * (1 - np.eye(70))]
    check_against_reference(logits, [features], costs, 1, infer(logits, [term], 1))


def test_scales_multiply_points_in_and_out(device):
    # More corners than CUDA gathers at once.
    logits, (features,) = point_case(device, 6, 20, torch.float64, dims=(8,))
    before, after = 0.5 + torch.rand(2, 40, 1, dtype=torch.float64, device=device) / 2
    result = infer(logits, [plain_term(features, 0.4, None, (before, after))], 1)
    rows = to_float64(logits.mT)
    q = reference.softmax(rows) * to_float64(before).reshape(2, -1, 1)
    filtered = reference.filter_images(q.transpose(0, 2, 1), to_float64(features), "none")
    message = filtered.transpose(0, 2, 1) * to_float64(after).reshape(2, -1, 1)
    exact = reference.softmax(rows + 0.4 * message).transpose(0, 2, 1)
    np.testing.assert_allclose(to_float64(result), exact, rtol=0, atol=1e-11)


def test_an_image_does_not_depend_on_its_batch(device):
    logits, features = point_case(device, 21, 25, torch.float32, images=3)
    weights = (0.3, 0.2)
    whole = infer(logits, [*map(plain_term, features, weights)], 2)
    alone = [plain_term(f[2:].contiguous(), w) for f, w in zip(features, weights, strict=True)]
    assert torch.equal(whole[2:], infer(logits[2:].contiguous(), alone, 2))


def test_labels_that_are_ruled_out(device):
    logits = torch.tensor([[[0.0, 800.0], [1.0, 0.0], [-torch.inf, -800.0]]], device=device)
    torch.testing.assert_close(infer(logits, [], 3), logits.softmax(1))
    result = infer(logits, [plain_term(torch.zeros(1, 1, 2, device=device), 1.0)], 2)
    assert result[0, 2].tolist() == [0, 0]
    torch.testing.assert_close(result.sum(1), torch.ones(1, 2, device=device))


def test_nan_is_heard_by_its_own_point(device):
    logits, (features,) = point_case(device, 3, 9, torch.float32, images=1, dims=(2,))
    logits[0, 1, 4] = torch.nan
    assert infer(logits, [plain_term(features, 0.3)], 1)[0, :, 4].isnan().all()


@pytest.mark.parametrize("labels", [3, 9])
def test_opcheck(labels):
    inputs = random_inputs(labels, "matrix", "after")
    ops = torch.ops.atrousx
    torch.library.opcheck(ops._mean_field_states.default, (*inputs, 2))
    q, states = ops._mean_field_states(*inputs, 2)
    arguments = (q, states, *inputs[1:], True, True)
    torch.library.opcheck(ops._mean_field_backward.default, arguments)


def test_direct_calls_are_checked():
    logits, tensors, weights = random_inputs(3, "potts", "none")
    _, states = torch.ops.atrousx._mean_field_states(logits, tensors, weights, 2)
    for wrong in (states[:, 1:], states[..., :3], states.float(), states[:0]):
        with pytest.raises(RuntimeError, match="states must be those of the logits"):
            torch.ops.atrousx._mean_field_backward(logits, wrong, tensors, weights, True, True)
    with pytest.raises(RuntimeError, match="iterations must lie in 0"):
        torch.ops.atrousx._mean_field(logits, tensors, weights, -1)


@pytest.mark.parametrize("compatibility", [False, True])
def test_gradients_have_gradients(compatibility):
    logits = torch.randn(1, 3, 40, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(3, 3, dtype=torch.float64, requires_grad=True) if compatibility else None
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    term = make_term(1.0, dtype=torch.float64)

    def run(logits, weight, *matrix):
        changed = term._replace(weight=weight, compatibility=matrix[0] if matrix else None)
        return mean_field(logits, [changed], 2)

    inputs = (logits, weight, matrix) if compatibility else (logits, weight)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.cuda
def test_iterations_can_be_captured():
    logits = torch.randn(1, 21, 40, device="cuda")
    terms = [
        make_term(0.7, torch.rand(21, 21, device="cuda"), "cuda"),
        make_term(2.0, None, "cuda"),
    ]
    expected = mean_field(logits, terms, 5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = mean_field(logits, terms, 5)
    result.zero_()
    graph.replay()
    assert torch.equal(result, expected)
