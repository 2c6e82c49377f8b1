"""to_dense: the dense features include the classifier's own features."""

import importlib

import pytest
import torch
from torch import nn

from atrousx import AtrousConv2d
from atrousx.models import to_dense
from tests.models import torchvision_reference as reference

# A network, and the module whose input is its features (None: they are relu(features)).
NETWORKS = {
    "resnet18": "avgpool",
    "resnext50_32x4d": "avgpool",
    "vgg11_bn": "avgpool",
    "mobilenet_v2": None,
    "mobilenet_v3_small": "avgpool",
    "efficientnet_b0": "avgpool",
    "densenet121": None,
    "convnext_tiny": "avgpool",
    "regnet_x_400mf": "avgpool",
    "regnet_y_400mf": "avgpool",
}


def build(name):
    reference.segmentation()
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None).eval()
    for key, parameter in network.named_parameters():
        # Its initial values are so small that the blocks would have no visible effect.
        if key.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def features_of(network, name, image):
    if NETWORKS[name] is None:
        features = network.features(image)
        return features.relu() if name == "densenet121" else features
    seen = []
    pool = network.get_submodule(NETWORKS[name])
    handle = pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(image)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
@pytest.mark.slow
def test_torchvisions_networks(name):
    network, image = build(name), torch.randn(1, 3, 64, 96)
    expected = features_of(network, name, image)
    assert expected.shape[-2:] == (2, 3)
    dense = to_dense(network, 8)
    found = dense(image)
    assert found.shape == (1, expected.shape[1], 8, 12)
    difference = (found[..., ::4, ::4] - expected).abs().max()
    assert difference <= 1e-3 * expected.abs().max()
    # The classifier and its parameters do not change, and the dense network shares them.
    assert torch.equal(features_of(network, name, image), expected)
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in dense.parameters()} < own
    assert {type(m) for m in dense.modules() if isinstance(m, nn.Conv2d)} == {AtrousConv2d}


# timm's names. The features are the result of forward_features.
TIMM = (
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "regnety_002",
    "ghostnet_050",
)
TIMM_REFUSES = {
    "ecaresnet26t": "mean flattens its features before",
    "convnextv2_atto": "the operation norm may depend on the size of the map",
    "vit_tiny_patch16_224": "the operation shape of x may depend on the size of the map",
    "tf_mobilenetv3_small_minimal_100": "cannot be traced by torch.fx: symbolically traced",
    "res2net50_26w_4s": "its layer layer3.0.pool averages padding",
}


def timm_network(name):
    reference.segmentation()
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, pretrained=False)
    network.load_state_dict(reference.random_state(network))
    return network.eval()


@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_timms_networks(name):
    network, image = timm_network(name), torch.randn(1, 3, 64, 96)
    expected = network.forward_features(image)
    found = to_dense(network, 8)(image)
    assert found.shape == (1, expected.shape[1], 8, 12)
    difference = (found[..., ::4, ::4] - expected).abs().max()
    assert difference <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", TIMM_REFUSES)
def test_timms_networks_that_cannot_be_dense(name):
    with pytest.raises(ValueError, match=f"classifier .*{TIMM_REFUSES[name]}"):
        to_dense(timm_network(name), 8)


def test_means_over_other_dimensions_are_refused():
    class Attends(nn.Module):
        def __init__(self, dims):
            super().__init__()
            self.conv, self.dims = nn.Conv2d(3, 4, 3, 2, 1), dims
            self.last = chain(nn.Conv2d(4, 4, 3, 2, 1))

        def forward(self, x):
            x = self.conv(x)
            return self.last(x * x.mean(self.dims, True).sigmoid())

    to_dense(Attends((-1, 2)), 2)
    for dims in (1, (1, 2), (2,)):
        with pytest.raises(ValueError, match="the operation mean may depend on the size"):
            to_dense(Attends(dims), 2)


def chain(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("output_stride", [1, 2, 4])
@torch.inference_mode()
def test_every_reachable_stride(output_stride):
    network = chain(
        nn.Conv2d(3, 4, 2, 2),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.MaxPool2d(3, 2, 1),
    ).double()
    image = torch.randn(2, 3, 32, 40).double()
    expected = network[:4](image)
    found = to_dense(network, output_stride)(image)
    step = 8 // output_stride
    assert found.shape[-2:] == (32 // output_stride, 40 // output_stride)
    assert torch.allclose(found[..., ::step, ::step], expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_sizes_that_do_not_divide_agree_away_from_the_borders():
    network = chain(
        nn.Conv2d(3, 4, 7, 2, 3),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.Conv2d(4, 4, 2, 2),
    ).double()
    image = torch.randn(1, 3, 117, 149).double()
    expected = network[:5](image)[..., 1:-1, 1:-1]
    found = to_dense(network, 4)(image)[..., 4::4, 4::4]
    assert expected.shape == (1, 4, 5, 7)
    found = found[..., :5, :7]
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_unchanged_at_its_own_stride():
    network = chain(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    image = torch.randn(1, 3, 9, 9)
    dense = to_dense(network, 2)
    assert torch.allclose(dense(image), network[:2](image), atol=1e-6)
    assert not dense.training
    assert to_dense(network.train(), 2).training


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, image):
        return self.pool(self.conv(image) + image[:, :1, ::2, ::2]).flatten(1)


class Branching(nn.Module):
    def forward(self, image):
        return image if image.sum() > 0 else -image


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (chain(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2)), "its layer 1 is a Upsample"),
        (chain(nn.Conv2d(3, 4, 1, (2, 1))), r"its layer 0 has stride \(2, 1\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "it never pools its features"),
        (Joined(), "getitem may depend on the size of the map"),
        (Branching(), "cannot be traced by torch.fx"),
        (
            chain(nn.Conv2d(3, 4, 3, 4, 1, padding_mode="reflect")),
            "its layer 0 runs twice or does not pad with zeros",
        ),
        (chain(nn.Conv2d(3, 4, 1, 4)), "output_stride must be one of 1, 4 here, got 2"),
        (chain(nn.Conv2d(3, 4, 1)), "output_stride must be one of 1 here, got 2"),
    ],
)
def test_refuses(network, message):
    with pytest.raises(ValueError, match=message):
        to_dense(network, 2)


def test_rejects_what_is_no_module():
    with pytest.raises(TypeError, match=r"classifier must be a torch\.nn\.Module, got int"):
        to_dense(3)
