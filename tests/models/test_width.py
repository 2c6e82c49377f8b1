"""Narrow networks: their channels, and their weights are recognised."""

import pytest
import torch

from atrousx import models
from atrousx.models.width import scaled, width_of
from tests.optional import given, settings, st

BUILDERS = [
    (models.deeplab_v1, {}),
    (models.deeplab_v1, {"fc6": "4x4_r8", "multi_scale_features": True}),
    (models.deeplab_v2, {"head": "large_fov"}),
    (models.deeplab_v2, {"backbone": "vgg16", "head": "large_fov"}),
    (models.deeplab_v3, {"aux": True}),
    (models.deeplab_v3, {"layout": "torchvision"}),
    (models.deeplab_v3, {"head": "cascade", "blocks": 5, "backbone": "resnet101"}),
]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("build", "options"), BUILDERS)
def test_a_tenth_of_the_width_has_a_fiftieth_of_the_parameters(build, options):
    with torch.device("meta"):
        full, narrow = build(5, **options), build(5, width=0.1, **options)
    assert parameters(narrow) < parameters(full) / 50
    assert narrow.state_dict().keys() == full.state_dict().keys()


@pytest.mark.parametrize("width", [0.05, 0.33])
@pytest.mark.parametrize(("build", "options"), BUILDERS)
def test_weights_tell_the_width(build, options, width):
    model = build(5, width=width, **options).eval()
    options = {name: value for name, value in options.items() if name in ("fc6",)}
    copy = models.from_weights(model.state_dict(), **options).eval()
    image = torch.rand(1, 3, 33, 41)
    assert torch.equal(copy(image)["out"], model(image)["out"])


@given(st.floats(0.01, 4), st.sets(st.sampled_from([64, 128, 256, 512, 1024, 4096]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_the_width_found_gives_the_same_channels(width, layers):
    pairs = [(channels, scaled(channels, width)) for channels in layers]
    found = width_of(pairs)
    assert found is not None
    assert [scaled(channels, found) for channels in layers] == [count for _, count in pairs]


def test_layers_of_different_widths_have_no_width():
    assert width_of([(64, 64), (512, 256)]) is None


@pytest.mark.parametrize("build", [models.deeplab_v1, models.deeplab_v2, models.deeplab_v3])
@pytest.mark.parametrize(
    ("width", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("1", TypeError)],
)
def test_a_bad_width_is_named(build, width, error):
    with pytest.raises(error, match="width must be"):
        build(5, width=width)
