"""Mean-field inference over points; what DenseCRF shows of it is tested there."""

from __future__ import annotations

import pytest
import torch

from atrousx.ops import _mean_field, _mean_field_rows
from atrousx.ops._mean_field import Term, less_message, mean_field
from atrousx.ops._permutohedral_lattice import build_lattice
from atrousx.ops.permutohedral_filter import normalizer
from tests.ops.operator_cases import Numbers


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
    """Of the operators, in float64: two images, two terms."""
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
    ours = ops._mean_field_backward(grad, states, *inputs[1:], True, True)
    rows = _mean_field_rows.gradients_of_rows(grad, expected_states, *inputs[1:], True, True)
    if compatibility == "potts":
        rows = (rows[0], torch.diag_embed(rows[1].diagonal(dim1=1, dim2=2)), *rows[2:])
    for a, b in zip(ours, rows, strict=True):
        torch.testing.assert_close(a, b)
    of_logits, *none = ops._mean_field_backward(grad, states, *inputs[1:], False, False)
    assert torch.equal(of_logits, ours[0])
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
