"""Class weights by median frequency, against numbers computed by hand."""

import numpy as np
import pytest

from atrousx.data import Sample
from atrousx.training import median_frequency_weights


class Maps(list):
    num_classes = 4

    def __getitem__(self, index):
        labels = np.array(super().__getitem__(index), np.uint8)
        return Sample(str(index), np.zeros((*labels.shape, 3), np.uint8), labels)


def test_by_hand():
    maps = Maps([[[0, 0, 0, 1]], [[0, 2, 255, 255]]])
    seen = []
    weights = median_frequency_weights(maps, lambda: seen.append(1))
    # Class 0: 4 of 6 labelled pixels; class 1: 1 of 4; class 2: 1 of 2; class 3 does not occur.
    shares = [4 / 6, 1 / 4, 1 / 2]
    assert weights.tolist() == pytest.approx([0.5 / share for share in shares] + [1])
    assert len(seen) == 2


def test_without_labelled_pixels_all_weights_are_one():
    assert median_frequency_weights(Maps([[[255, 255]]])).tolist() == [1, 1, 1, 1]
