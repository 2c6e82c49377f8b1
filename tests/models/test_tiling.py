"""Tiles cover the image, their weights sum to one, and they give the untiled result if possible."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import atrousx
from atrousx.models import Preprocess
from atrousx.models.segmenter import Segmenter
from atrousx.models.tiling import starts, tiled, weights


class Tiny(Segmenter):
    """Output stride 8. It sees 8 + 16 + 8 pixels: 3x3, atrous 3x3, interpolation."""

    fusion = "mean"
    reach = 32

    def __init__(self, align_corners):
        super().__init__(Preprocess.caffe(), None)
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, 8, padding=1)
        self.dilated = atrousx.AtrousConv2d(6, 4, 3, padding=2, dilation=2)
        self.align_corners = align_corners
        self.seen = []

    def forward(self, input):
        self.seen.append(tuple(input.shape[-2:]))
        features = self.dilated(self.stem(input).relu()) / 100
        size = input.shape[-2:]
        return OrderedDict(out=self.resample(features, size, align_corners=self.align_corners))


def test_starts_by_hand():
    assert starts(40, 40, 8) == [0]
    assert starts(41, 40, 8) == [0, 32]
    assert starts(100, 48, 12) == [0, 32, 64]
    assert starts(513, 257, 64) == [0, 192, 384]


@pytest.mark.parametrize(
    ("extent", "tile", "overlap"), [(97, 64, 32), (500, 129, 40), (70, 65, 0), (700, 192, 128)]
)
def test_weights_add_up_to_one(extent, tile, overlap):
    total, like = torch.zeros(extent), torch.zeros(1)
    places = starts(extent, tile, overlap)
    for begin in places:
        own = weights(extent, begin, tile, overlap, like)
        total[begin : begin + tile] += own
        shared = tile - (places[1] - places[0])
        assert begin == 0 or not own[: shared // 4].any()
    torch.testing.assert_close(total, torch.ones(extent))
    assert places[-1] + tile >= extent > places[-1] + overlap


def test_the_network_of_a_pixel_is_found_again():
    images = torch.randn(2, 3, 150, 97)
    assert torch.equal(tiled(lambda x: 2 * x, images, 200, 50), 2 * images)
    torch.testing.assert_close(tiled(lambda x: 2 * x, images, 64, 16), 2 * images)


# Tiles share the image's feature grid if tile and image sizes differ by a multiple of 32.
@pytest.mark.parametrize(("size", "tile"), [((288, 352), 224), ((289, 353), 225)])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_the_untiled_where_it_reaches_far_enough(size, tile, flip):
    model = Tiny(align_corners=bool(tile % 2))
    photograph = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    whole = model.predict(photograph, flip=flip).probabilities
    model.seen.clear()
    found = model.predict(photograph, flip=flip, tile=tile, overlap=4 * model.reach)
    assert len(model.seen) > 2
    assert all(max(seen) <= tile for seen in model.seen)
    torch.testing.assert_close(found.probabilities, whole, rtol=1e-4, atol=1e-6)
    # With a smaller overlap only pixels near a border differ, and there is no jump.
    near = model.predict(photograph, flip=flip, tile=tile, overlap=model.reach).probabilities
    step = (tile - model.reach) // 32 * 32
    wrong = (near - whole).abs().amax((0, 1)) > 1e-5
    shared = [slice(begin - 1, begin + tile - step + 1) for begin in range(step, max(size), step)]
    expected = torch.zeros(size, dtype=torch.bool)
    for part in shared:
        expected[part] = expected[:, part] = True
        if flip:
            expected[:, size[1] - part.stop : size[1] - part.start] = True
    assert wrong.any()
    assert not (wrong & ~expected).any()
    jumps = [(p[..., 1:] - p[..., :-1]).abs().max() for p in (near, whole)]
    assert jumps[0] < 2 * jumps[1]


def test_scales_are_tiled_too():
    model = Tiny(align_corners=False)
    photograph = torch.randint(256, (3, 128, 96), dtype=torch.uint8)
    options = {"scales": (0.5, 2), "crf": False}
    whole = model.predict(photograph, **options).probabilities
    model.seen.clear()
    found = model.predict(photograph, **options, tile=192, overlap=128).probabilities
    assert (64, 48) in model.seen
    assert max(map(max, model.seen)) == 192
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_rejects():
    model, image = Tiny(False), torch.zeros(3, 64, 64)
    with pytest.raises(ValueError, match="got tile=40 and overlap=10"):
        model.predict(image, tile=40)
    with pytest.raises(ValueError, match="got tile=64 and overlap=-1"):
        model.predict(image, tile=64, overlap=-1)
    with pytest.raises(ValueError, match="got tile=192 and overlap=129"):
        model.predict(image, tile=192, overlap=129)
    with pytest.raises(ValueError, match="overlap=8 needs a tile"):
        model.predict(image, overlap=8)
    for name in ("tile", "overlap"):
        with pytest.raises(TypeError, match=rf"{name} must be an int or None, got 64\.0"):
            model.predict(image, **{"tile": 64, name: 64.0})
