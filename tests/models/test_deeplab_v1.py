"""DeepLab v1: the paper's table, VGG's own scores made dense, labels before and after the CRF."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atrousx import AtrousConv2d, DenseCRF
from atrousx.models import deeplab_v1, from_vgg16
from atrousx.models.backbones.vgg import VGG16, DensePool2x2
from tests.models.field_of_view import field_of_view

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# The first paper's table: fc6, parameters with 21 classes, field of view in pixels.
TABLE = [
    ("7x7_r4", 134_346_581, 224),
    ("4x4_r4", 65_140_565, 128),
    ("4x4_r8", 65_140_565, 224),
    ("large_fov", 20_505_429, 224),
]


def on_meta(**options):
    with torch.device("meta"):
        return deeplab_v1(**options)


@pytest.fixture(scope="module")
def vgg16():
    """Returns a state_dict like torchvision's vgg16, with 6 classes.

    The wide layers repeat a few random rows, because 100 million random values would take long.
    """
    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in VGG16("2x2").features.state_dict().items()}
    for index, (outputs, inputs) in {0: (4096, 25088), 3: (4096, 4096), 6: (6, 4096)}.items():
        rows = torch.randn(min(64, outputs), inputs) * inputs**-0.5
        state[f"classifier.{index}.weight"] = rows.repeat(-(-outputs // 64), 1)[:outputs]
        state[f"classifier.{index}.bias"] = torch.randn(outputs)
    return state


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return deeplab_v1(num_classes=4).eval()


@pytest.mark.parametrize(("fc6", "count", "view"), TABLE)
def test_parameters_of_the_papers_table(fc6, count, view):
    assert sum(p.numel() for p in on_meta(fc6=fc6).parameters()) == count


@pytest.mark.parametrize(("fc6", "count", "view"), TABLE)
def test_field_of_view_of_the_papers_table(fc6, count, view):
    network = on_meta(fc6=fc6, pooling="2x2")
    assert view == 8 * network.fc6.rate * (network.fc6.kernel - 1) + 32
    chain = nn.Sequential(network.backbone.features, network.classifier)
    assert field_of_view(chain, 321, centre_only=True) == (view, view)


@pytest.mark.parametrize(("pooling", "view"), [("2x2", 404), ("3x3", 419)])
def test_field_of_view_with_all_convolutions(pooling, view):
    # VGG-16's first fully connected layer sees 404 pixels. 3x3 windows add 1 + 2 + 4 + 8. The last
    # window spans 3 features with either pooling.
    network = on_meta(fc6="7x7_r4", pooling=pooling)
    chain = nn.Sequential(network.backbone.features, network.classifier)
    assert field_of_view(chain, 561, centre_only=False) == (view, view)


@pytest.mark.parametrize("fc6", ["7x7_r4", "4x4_r4", "4x4_r8", "large_fov"])
@pytest.mark.parametrize(("height", "width"), [(41, 47), (8, 33)])
def test_the_size_is_kept(fc6, height, width):
    network = on_meta(num_classes=3, fc6=fc6)
    features = network.classifier[0](torch.empty(2, 512, height, width, device="meta"))
    assert features.shape[2:] == (height, width)


@pytest.mark.parametrize(
    ("pooling", "extent", "features"),
    [("3x3", 321, 41), ("3x3", 320, 41), ("3x3", 306, 40), ("2x2", 320, 40), ("2x2", 327, 40)],
)
@pytest.mark.parametrize("multi_scale_features", [False, True])
def test_a_feature_every_8_pixels(pooling, extent, features, multi_scale_features):
    network = on_meta(pooling=pooling, multi_scale_features=multi_scale_features)
    image = torch.empty(1, 3, extent, 65, device="meta")
    size = (features, 9 if pooling == "3x3" else 8)
    assert network.train()(image)["out"].shape[2:] == size
    assert network.eval()(image)["out"].shape == (1, 21, extent, 65)


def test_multi_scale_features_add_640_channels():
    plain, multi = on_meta(), on_meta(multi_scale_features=True)
    assert multi.classifier[6].in_channels == plain.classifier[6].in_channels + 640
    inputs = [branch[0].in_channels for branch in multi.multi_scale.branches]
    assert inputs == [3, 64, 128, 256, 512]
    first = [tuple(branch[0].weight.shape[::2]) for branch in multi.multi_scale.branches]
    assert first == [(128, 3)] * 5
    assert {tuple(b[3].weight.shape) for b in multi.multi_scale.branches} == {(128, 128, 1, 1)}


def test_multi_scale_features_reach_the_logits():
    network = deeplab_v1(num_classes=2, multi_scale_features=True).eval()
    image = torch.randn(1, 3, 33, 41)
    with torch.inference_mode():
        before = network(image)["out"]
        network.multi_scale.branches[2][3].bias += 1
        after = network(image)["out"]
        weights = network.classifier[6].weight[:, 1024 + 256 : 1024 + 384, 0, 0].sum(1)
    # The change is 1 at 128 channels, unless ReLU clips it.
    assert weights.abs().min() > 0
    assert not torch.allclose(before, after)


@torch.inference_mode()
def test_exact_pooling_gives_the_classifiers_own_scores(vgg16):
    network = from_vgg16(
        vgg16, num_classes=6, fc6="7x7_r4", pooling="2x2", keep_classes=True
    ).eval()
    image = torch.randn(1, 3, 64, 96)
    features = image
    for index in range(31):
        if index in CONVOLUTIONS:
            weight, bias = (vgg16[f"features.{index}.{name}"] for name in ("weight", "bias"))
            features = F.conv2d(features, weight, bias, padding=1).relu()
        elif index in (4, 9, 16, 23, 30):
            features = F.max_pool2d(features, 2, 2)
    weights = {i: vgg16[f"classifier.{i}.weight"] for i in (0, 3, 6)}
    hidden = F.conv2d(
        features, weights[0].view(-1, 512, 7, 7), vgg16["classifier.0.bias"], padding=3
    ).relu()
    hidden = F.conv2d(hidden, weights[3][..., None, None], vgg16["classifier.3.bias"]).relu()
    expected = F.conv2d(hidden, weights[6][..., None, None], vgg16["classifier.6.bias"])
    dense = network.scores(image)
    assert dense.shape == (1, 6, 8, 12)
    assert expected.shape == (1, 6, 2, 3)
    # Windows are centred: the classifier's first window is the dense network's second.
    sampled = dense[..., 1::4, 1::4]
    assert (sampled - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("fc6", "taps"), [("4x4_r8", (0, 2, 4, 6)), ("large_fov", (0, 3, 6))])
def test_decimation_keeps_taps_and_filters(vgg16, fc6, taps):
    network = from_vgg16(vgg16, num_classes=3, fc6=fc6, seed=5)
    whole = vgg16["classifier.0.weight"].view(4096, 512, 7, 7)
    biases = vgg16["classifier.0.bias"]
    filters = [int((biases == b).nonzero()) for b in network.classifier[0].bias]
    assert len(set(filters)) == len(filters) == network.fc6.width
    for i, row in enumerate(taps):
        for j, column in enumerate(taps):
            kept = network.classifier[0].weight[:, :, i, j]
            assert torch.equal(kept, whole[filters, :, row, column])
    second = vgg16["classifier.3.weight"][filters][:, filters]
    assert torch.equal(network.classifier[3].weight[..., 0, 0], second)
    assert torch.equal(network.classifier[3].bias, vgg16["classifier.3.bias"][filters])
    assert torch.equal(network.backbone.features[28].weight, vgg16["features.28.weight"])


def test_the_choice_of_filters_is_seeded(vgg16):
    state = torch.get_rng_state()
    first, again, other = (from_vgg16(vgg16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert not torch.equal(first.classifier[0].bias, other.classifier[0].bias)


def test_imagenet_weights_bring_their_preprocessing(vgg16, model):
    white = torch.full((1, 3, 1, 1), 255.0)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(from_vgg16(vgg16).preprocess(white).flatten(), expected)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([-104.008, -116.669, 255 - 122.675])
    assert torch.allclose(model.preprocess(red).flatten(), expected)
    assert torch.equal(
        model.preprocess(red.expand(2, 3, 5, 4)[0]), expected.view(3, 1, 1).expand(3, 5, 4)
    )


def test_from_vgg16_rejects(vgg16):
    lacking = {k: v for k, v in vgg16.items() if k != "features.5.bias"}
    with pytest.raises(ValueError, match=r"it lacks features\.5\.bias"):
        from_vgg16(lacking)
    wrong = vgg16 | {"classifier.3.weight": torch.zeros(10, 4096)}
    with pytest.raises(ValueError, match=r"classifier\.3\.weight must have shape \(4096, 4096\)"):
        from_vgg16(wrong)
    with pytest.raises(ValueError, match="keep_classes needs a last layer of 4096 inputs"):
        from_vgg16(vgg16, num_classes=6, keep_classes=True)
    with pytest.raises(ValueError, match=r"classifier\.6\.weight must have shape \(5, 4096\)"):
        from_vgg16(vgg16, num_classes=5, fc6="4x4_r4", keep_classes=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"fc6": "5x5"}, "fc6 must be one of large_fov, 7x7_r4, 4x4_r4, 4x4_r8, got '5x5'"),
        ({"pooling": "4x4"}, "pooling must be one of 3x3, 2x2, got '4x4'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        deeplab_v1(**arguments)


def test_every_convolution_is_an_atrous_conv2d(model):
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    assert kinds == {AtrousConv2d}


def test_exact_pooling_needs_two_features():
    network = on_meta(num_classes=2, pooling="2x2").eval()
    assert network(torch.empty(1, 3, 16, 17, device="meta"))["out"].shape == (1, 2, 16, 17)
    message = r"images must have at least 16 pixels .* with pooling='2x2', got \(15, 40\)"
    with pytest.raises(ValueError, match=message):
        network(torch.empty(1, 3, 15, 40, device="meta"))


def test_dense_pooling_by_hand():
    row = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0]).view(1, 1, 1, 5).expand(1, 1, 5, 5)
    assert DensePool2x2(1)(row)[0, 0, 0].tolist() == [3, 4, 4, 5, 5]
    assert DensePool2x2(2)(row)[0, 0, 0].tolist() == [1, 4, 1, 5, 1]
    assert DensePool2x2(2)(-row)[0, 0, 0].tolist() == [-1, -3, -1, -4, -1]


def test_predict_before_and_after_the_crf(model):
    photograph = torch.randint(256, (1, 3, 33, 41), dtype=torch.uint8)
    model.train()
    before, after, probabilities = model.predict(photograph)
    assert model.training
    assert model.backbone.features[0].training
    model.eval()
    with torch.inference_mode():
        # The expected result: blue, green, red minus the mean; logits; the CRF on
        # log-probabilities.
        mean = torch.tensor([104.008, 116.669, 122.675]).view(3, 1, 1)
        logits = model(photograph.float().flip(1) - mean)["out"]
        crf = DenseCRF(4, bilateral_sigma_xy=121.0, bilateral_sigma_rgb=5.0)
        expected = crf(logits.log_softmax(1), photograph)
    assert torch.equal(before, logits.argmax(1))
    assert torch.equal(after, expected.argmax(1))
    assert (probabilities - expected).abs().max() < 1e-4
    assert model.predict(photograph, crf=False).refined is None
    assert model.predict(photograph, crf=None).refined is None
    own = DenseCRF(4, iterations=0)
    assert torch.equal(model.predict(photograph, crf=own).refined, before)


def test_predict_averages_scales_and_mirror_images(model):
    photograph = torch.randint(256, (2, 3, 24, 17), dtype=torch.uint8)
    found = model.predict(photograph, scales=(0.5, 1), flip=True, crf=False).probabilities
    images = model.preprocess(photograph)
    small = F.interpolate(images, (12, 8), mode="bilinear")
    with torch.inference_mode():
        looks = [
            F.interpolate(model(small)["out"], (24, 17), mode="bilinear"),
            F.interpolate(model(small.flip(-1))["out"], (24, 17), mode="bilinear").flip(-1),
            model(images)["out"],
            model(images.flip(-1))["out"].flip(-1),
        ]
    expected = sum(look.softmax(1) for look in looks) / 4
    assert (found - expected).abs().max() < 1e-5
    assert torch.allclose(found.sum(1), torch.ones(2, 24, 17))


def test_predict_takes_one_photograph_without_a_batch(model):
    photograph = torch.randint(256, (3, 17, 25), dtype=torch.uint8)
    assert model.predict(photograph, crf=False).labels.shape == (1, 17, 25)


def test_predict_rejects(model):
    with pytest.raises(TypeError, match=r"image must be a torch\.Tensor, got str"):
        model.predict("photo.jpg")
    with pytest.raises(ValueError, match=r"image must be .* got \(1, 4, 8, 8\)"):
        model.predict(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="image must have 4 dimensions"):
        model.predict(torch.zeros(8, 8))
    for scales in ((), (0,), (1, -1)):
        with pytest.raises(ValueError, match="scales must be positive numbers"):
            model.predict(torch.zeros(1, 3, 8, 8), scales=scales)
    with pytest.raises(TypeError, match="crf must be a DenseCRF, a bool or None, got str"):
        model.predict(torch.zeros(1, 3, 8, 8), crf="yes")


def test_the_state_dict_holds_weights_only(model):
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "classifier"}


def test_training_reaches_every_parameter():
    network = deeplab_v1(num_classes=2, multi_scale_features=True).train()
    network(torch.randn(1, 3, 33, 33))["out"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
