"""DeepLab v3: the same keys and numbers as torchvision's model, and its use."""

import copy
import io
import itertools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atrousx import AtrousConv2d, replace_convs
from atrousx.models import DeepLabV3, deeplab_v3, freeze_bn
from tests.models import torchvision_reference as reference

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def model() -> DeepLabV3:
    """A shared model. Tests that change it take a copy."""
    torch.manual_seed(0)
    made = deeplab_v3(layout="torchvision", aux=True)
    made.load_state_dict(reference.random_state(made))
    return made.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 33, 41)


def pair_of(backbone):
    """Returns both libraries' models with the same random weights, with no key left over."""
    torchvision_model = reference.deeplab(backbone)
    atrousx_model = deeplab_v3(backbone=backbone, layout="torchvision", aux=True).eval()
    state = reference.random_state(torchvision_model)
    torchvision_model.load_state_dict(state)
    atrousx_model.load_state_dict(state, strict=True)
    assert list(atrousx_model.state_dict()) == list(state)
    return torchvision_model, atrousx_model


def assert_agree(actual, expected):
    assert type(actual) is type(expected) is OrderedDict
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].shape == value.shape
        assert (actual[key] - value).abs().max() <= 1e-4 * value.abs().max(), key


@torch.inference_mode()
def test_equals_torchvision_on_a_photograph():
    torchvision_model, atrousx_model = pair_of("resnet50")
    data = pytest.importorskip("skimage.data")
    photograph = torch.from_numpy(data.coffee()[50:350, 100:500].copy()) / 255
    image = ((photograph - MEAN) / DEVIATION).permute(2, 0, 1)[None]
    assert image.shape == (1, 3, 300, 400)
    assert_agree(atrousx_model(image), torchvision_model(image))


@torch.inference_mode()
def test_equals_torchvision_with_resnet101(images):
    torchvision_model, atrousx_model = pair_of("resnet101")
    assert_agree(atrousx_model(images), torchvision_model(images))


@torch.inference_mode()
def test_torchvisions_model_takes_atrous_conv2d(images):
    torchvision_model = reference.deeplab("resnet50")
    torchvision_model.load_state_dict(reference.random_state(torchvision_model))
    expected = torchvision_model(images)
    replace_convs(torchvision_model)
    assert sum(type(m) is AtrousConv2d for m in torchvision_model.modules()) == 63
    assert_agree(torchvision_model(images), expected)


@pytest.mark.slow
def test_trains_as_torchvision_does(images):
    torchvision_model, atrousx_model = pair_of("resnet50")
    results = []
    # In float64, because normalisation over so few pixels magnifies rounding errors too much.
    for network in (torchvision_model, atrousx_model):
        network.double().train()
        torch.manual_seed(5)
        logits = network(images.double())
        target = torch.randint(21, logits["out"].shape[2:]).expand(2, -1, -1)
        loss = F.cross_entropy(logits["out"], target) + F.cross_entropy(logits["aux"], target) / 2
        loss.backward()
        results.append(logits)
    assert_agree(results[1], results[0])
    gradients = {name: parameter.grad for name, parameter in atrousx_model.named_parameters()}
    for name, parameter in torchvision_model.named_parameters():
        difference = (gradients[name] - parameter.grad).norm()
        assert difference <= 1e-9 * parameter.grad.norm() + 1e-12, name
    for name, expected in torchvision_model.named_buffers():
        torch.testing.assert_close(atrousx_model.get_buffer(name), expected)


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet50", 42_004_074), ("resnet101", 60_996_202)]
)
def test_parameter_counts(backbone, count):
    with torch.device("meta"):
        network = deeplab_v3(backbone=backbone, layout="torchvision", aux=True)
    assert sum(p.numel() for p in network.parameters()) == count


def test_every_convolution_is_an_atrous_conv2d(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    # The stem, 16 units of 3, 4 projections; ASPP; its head; the auxiliary classifier.
    assert len(convolutions) == 1 + 48 + 4 + 6 + 2 + 2
    assert {type(m) for m in convolutions} == {AtrousConv2d}


def rates(network):
    """Returns the rates of the last stage's units and of ASPP."""
    units = [unit.conv2.dilation[0] for unit in network.backbone.layer4]
    return units, [network.classifier[0].convs[i][0].dilation[0] for i in (1, 2, 3)]


def test_rates_follow_the_output_stride():
    with torch.device("meta"):
        built = {
            (layout, stride): rates(deeplab_v3(layout=layout, output_stride=stride))
            for layout, stride in itertools.product(("paper", "torchvision"), (None, 8, 16))
        }
    assert built["paper", None] == built["paper", 16] == ([2, 4, 8], [6, 12, 18])
    assert built["paper", 8] == ([4, 8, 16], [12, 24, 36])
    assert built["torchvision", None] == built["torchvision", 8] == ([2, 4, 4], [12, 24, 36])
    assert built["torchvision", 16] == ([1, 2, 2], [6, 12, 18])


def test_the_papers_layout():
    network = deeplab_v3(num_classes=5, multi_grid=(1, 2, 1)).eval()
    assert rates(network)[0] == [2, 4, 2]
    assert [type(m).__name__ for m in network.classifier] == ["ASPP", "AtrousConv2d"]
    logits = network(torch.randn(1, 3, 65, 49))
    assert list(logits) == ["out"]
    assert logits["out"].shape == (1, 5, 65, 49)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (
            {"backbone": "vgg16"},
            "backbone must be one of .*, mobilenet_v2, got 'vgg16'",
        ),
        ({"output_stride": 4}, "output_stride must be one of 8, 16, 32 with 4 blocks, got 4"),
        ({"output_stride": 64}, "output_stride must be one of 8, 16, 32 with 4 blocks, got 64"),
        (
            {"head": "cascade", "blocks": 5, "output_stride": 128},
            "one of 8, 16, 32, 64 with 5 blocks, got 128",
        ),
        ({"head": "pyramid"}, "head must be one of aspp, cascade, got 'pyramid'"),
        ({"blocks": 5}, "blocks belongs to head='cascade'"),
        ({"head": "cascade", "blocks": 8}, "blocks must be 4, 5, 6 or 7, got 8"),
        (
            {"head": "cascade", "layout": "torchvision"},
            "head='cascade' belongs to layout='paper'",
        ),
        (
            {"layout": "caffe"},
            "layout must be one of paper, torchvision, .*, got 'caffe'",
        ),
        (
            {"head": "cascade", "backbone": "mobilenet_v2"},
            "head='cascade' needs a ResNet, got backbone='mobilenet_v2'",
        ),
        ({"backbone": "mobilenet_v2", "layout": "smp"}, "with layout='smp', got 'mobilenet_v2'"),
        ({"backbone": "mobilenet_v2", "aux": True}, "aux needs a ResNet"),
        ({"multi_grid": (1, 2)}, "multi_grid must hold a positive rate for each"),
        ({"multi_grid": ()}, "multi_grid must hold a positive rate for each"),
        ({"multi_grid": (1, 0, 1)}, "multi_grid must hold a positive rate for each"),
        (
            {"layout": "torchvision", "multi_grid": (1, 2, 4)},
            "multi_grid belongs to layout='paper'",
        ),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        deeplab_v3(**arguments)


@torch.inference_mode()
def test_without_aux_the_logits_are_the_same(model, images):
    network = deeplab_v3(layout="torchvision").eval()
    main = {k: v for k, v in model.state_dict().items() if not k.startswith("aux")}
    network.load_state_dict(main, strict=True)
    logits = network(images)
    assert list(logits) == ["out"]
    assert torch.equal(logits["out"], model(images)["out"])


@torch.inference_mode()
def test_copies_and_files(model, images):
    expected = model(images)["out"]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(images)["out"], expected)


@torch.inference_mode()
def test_formats_and_dtypes(model, images):
    network = copy.deepcopy(model)
    expected = network(images)["out"]
    scale = expected.abs().max()
    channels_last = network.to(memory_format=torch.channels_last)(
        images.to(memory_format=torch.channels_last)
    )["out"]
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert (channels_last - expected).abs().max() <= 1e-4 * scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(images)["out"]
    assert (mixed - expected).abs().max() <= 0.1 * scale
    assert (network.double()(images.double())["out"] - expected).abs().max() <= 1e-4 * scale


@torch.inference_mode()
def test_half_precision():
    network = deeplab_v3(num_classes=4, layout="torchvision").eval().half()
    logits = network(torch.rand(1, 3, 33, 33).half())["out"]
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()


@torch.inference_mode()
def test_compiles_in_one_graph(model, images):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_agree(compiled(images), model(images))


@torch.inference_mode()
def test_exports_for_any_size(model, images):
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(model, (images,), dynamic_shapes=(sizes,)).module()
    larger = torch.randn(1, 3, 49, 57)
    assert_agree(exported(larger), model(larger))


@pytest.mark.slow
def test_training_lowers_the_loss():
    network = deeplab_v3(num_classes=3, layout="torchvision", aux=True).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    images, target = torch.randn(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        logits = network(images)
        loss = sum(F.cross_entropy(value, target) for value in logits.values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_cascades_rates():
    with torch.device("meta"):
        network = deeplab_v3(head="cascade", multi_grid=(1, 1, 1))
    units = [[unit.rate for unit in stage] for stage in network.backbone.stages()]
    assert [rates[0] for rates in units[3:]] == [2, 4, 8, 16]
    with torch.device("meta"):
        grid = deeplab_v3(head="cascade", multi_grid=(1, 2, 3), output_stride=8)
    units = [[unit.rate for unit in stage] for stage in grid.backbone.stages()]
    assert units[2:] == [[2] * 6, [4, 8, 12], [8, 16, 24], [16, 32, 48], [32, 64, 96]]
    with torch.device("meta"):
        default = deeplab_v3(head="cascade", blocks=5)
    assert [u.rate for u in default.backbone.layer5] == [4, 8, 4]
    assert not hasattr(default.backbone, "layer6")


@pytest.mark.parametrize("output_stride", [8, 16, 32, 64, 128, 256])
def test_the_cascade_at_every_output_stride(output_stride):
    with torch.device("meta"):
        network = deeplab_v3(head="cascade", output_stride=output_stride).eval()
        image = torch.empty(1, 3, 512, 768)
    features = network.backbone(image)["out"]
    assert features.shape == (1, 2048, 512 // output_stride, 768 // output_stride)
    assert network(image)["out"].shape == (1, 21, 512, 768)
    # Strides have no weights, so the weights are the same for every output stride.
    assert len(network.state_dict()) == len(deeplab_on_meta(head="cascade").state_dict())


def deeplab_on_meta(**options):
    with torch.device("meta"):
        return deeplab_v3(**options)


def test_the_cascade_ends_in_one_convolution():
    network = deeplab_on_meta(head="cascade", num_classes=7)
    # Blocks 5 to 7 are like block 4, but without the projection of its first unit.
    count = {k: sum(p.numel() for p in stage.parameters()) for k, stage in stages_of(network)}
    identity = sum(p.numel() for p in network.backbone.layer4[1].parameters())
    assert count["layer5"] == count["layer6"] == count["layer7"]
    assert count["layer5"] == 2 * identity + identity
    assert [tuple(p.shape) for p in network.classifier.parameters()] == [(7, 2048, 1, 1), (7,)]


def stages_of(network):
    return list(zip(network.backbone.stage_names, network.backbone.stages(), strict=True))


def test_momentum_is_the_papers_or_torchvisions():
    for layout, expected in (("paper", 3e-4), ("torchvision", 0.1)):
        network = deeplab_on_meta(layout=layout, aux=True)
        assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {
            expected
        }


def test_a_single_image_trains():
    network = deeplab_v3(num_classes=2).train()
    before = network.classifier[0].convs[4][2].running_mean.clone()
    network(torch.randn(1, 3, 33, 33))["out"].square().mean().backward()
    pooled = network.classifier[0].convs[4]
    assert torch.equal(pooled[2].running_mean, before)
    assert pooled[1].weight.grad.isfinite().all()
    assert pooled[1].weight.grad.any()


def test_predict_averages_probabilities(model):
    photograph = torch.randint(256, (1, 3, 33, 41), dtype=torch.uint8)
    labels, refined, probabilities = model.predict(photograph, flip=True)
    assert refined is None
    with torch.inference_mode():
        images = (photograph / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)
        plain = model(images)["out"].softmax(1)
        mirrored = model(images.flip(-1))["out"].flip(-1).softmax(1)
    expected = (plain + mirrored) / 2
    assert (probabilities - expected).abs().max() < 1e-4
    assert torch.equal(labels, probabilities.argmax(1))


def test_freezing_holds_in_training(model, images):
    network = freeze_bn(copy.deepcopy(model)).train()
    before = copy.deepcopy(network.state_dict())
    network(images)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
