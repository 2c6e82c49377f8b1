"""BilinearUpsample2d is a thin layer over an operator, whose own tests check the numbers."""

import copy

import pytest
import torch
from torch.nn import functional as F

from atrousx import BilinearUpsample2d

ROW = torch.tensor([[[[0.0, 4.0]]]])


def test_by_size_and_by_factor():
    expected = [[[[0.0, 1.0, 3.0, 4.0]]]]
    assert BilinearUpsample2d(size=(1, 4))(ROW).tolist() == expected
    assert BilinearUpsample2d(scale_factor=(1, 2))(ROW).tolist() == expected


def test_aligned_corners():
    assert BilinearUpsample2d(size=(1, 3), align_corners=True)(ROW).tolist() == [[[[0, 2, 4]]]]


def test_equals_interpolate(device):
    input = torch.randn(2, 3, 5, 4, device=device)
    expected = F.interpolate(input, scale_factor=2.5, mode="bilinear")
    torch.testing.assert_close(BilinearUpsample2d(scale_factor=2.5)(input), expected)


def test_repr_says_how_it_was_made():
    assert repr(BilinearUpsample2d(65)) == "BilinearUpsample2d(size=65)"
    assert (
        repr(BilinearUpsample2d(scale_factor=8.0, align_corners=True))
        == "BilinearUpsample2d(scale_factor=8.0, align_corners=True)"
    )


@pytest.mark.parametrize("arguments", [{}, {"size": 2, "scale_factor": 2.0}])
def test_exactly_one_of_size_and_factor(arguments):
    with pytest.raises(ValueError, match="exactly one of size and scale_factor must be given, got"):
        BilinearUpsample2d(**arguments)


def test_nothing_to_save_and_copies_work():
    layer = BilinearUpsample2d(size=(3, 3))
    assert not layer.state_dict()
    assert torch.equal(copy.deepcopy(layer)(ROW), layer(ROW))


def test_compile_and_export():
    layer = BilinearUpsample2d(scale_factor=2)
    input = torch.randn(1, 2, 3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(input), layer(input))
    assert torch.equal(torch.export.export(layer, (input,)).module()(input), layer(input))
