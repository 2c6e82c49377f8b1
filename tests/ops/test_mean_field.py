"""Mean-field inference over points; what DenseCRF shows of it is tested there."""

from __future__ import annotations

import pytest
import torch

from atrousx.ops import _mean_field
from atrousx.ops._mean_field import Term, less_message, mean_field
from atrousx.ops._permutohedral_lattice import build_lattice
from atrousx.ops.permutohedral_filter import normalizer


def make_term(weight, compatibility=None, device="cpu"):
    lattice = build_lattice(torch.randn(1, 2, 40, device=device))
    return Term(lattice, normalizer(lattice, "symmetric"), weight, compatibility)


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
