"""DeepLab v3: torchvision's model key for key and number for number, and what users do with it."""

import copy
import io
import itertools
from collections import OrderedDict

import pytest
import torch
from skimage import data
from torch import nn
from torch.nn import functional as F

from atrousx import AtrousConv2d, replace_convs
from atrousx.models import DeepLabV3, deeplab_v3
from tests.models import torchvision_reference as reference

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def model() -> DeepLabV3:
    """Shared: tests that change it take a copy."""
    torch.manual_seed(0)
    made = deeplab_v3(layout="torchvision", aux=True)
    made.load_state_dict(reference.random_state(made))
    return made.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 33, 41)


def pair_of(backbone):
    """torchvision's model and ours with the same random weights, none left over on either side."""
    theirs = reference.deeplab(backbone)
    ours = deeplab_v3(backbone=backbone, layout="torchvision", aux=True).eval()
    state = reference.random_state(theirs)
    theirs.load_state_dict(state)
    ours.load_state_dict(state, strict=True)
    assert list(ours.state_dict()) == list(state)
    return theirs, ours


def assert_agree(ours, theirs):
    assert type(ours) is type(theirs) is OrderedDict
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape
        assert (ours[key] - expected).abs().max() <= 1e-4 * expected.abs().max(), key


@torch.inference_mode()
def test_equals_torchvision_on_a_photograph():
    theirs, ours = pair_of("resnet50")
    photograph = torch.from_numpy(data.coffee()[50:350, 100:500].copy()) / 255
    image = ((photograph - MEAN) / DEVIATION).permute(2, 0, 1)[None]
    assert image.shape == (1, 3, 300, 400)
    assert_agree(ours(image), theirs(image))


@torch.inference_mode()
def test_equals_torchvision_with_resnet101(images):
    theirs, ours = pair_of("resnet101")
    assert_agree(ours(images), theirs(images))


@torch.inference_mode()
def test_torchvisions_model_takes_our_convolutions(images):
    theirs = reference.deeplab("resnet50")
    theirs.load_state_dict(reference.random_state(theirs))
    expected = theirs(images)
    replace_convs(theirs)
    assert sum(type(m) is AtrousConv2d for m in theirs.modules()) == 63
    assert_agree(theirs(images), expected)


def test_trains_as_torchvision_does(images):
    theirs, ours = pair_of("resnet50")
    results = []
    # In float64: normalisation over so few pixels magnifies roundings beyond any useful tolerance.
    for network in (theirs, ours):
        network.double().train()
        torch.manual_seed(5)
        logits = network(images.double())
        target = torch.randint(21, logits["out"].shape[2:]).expand(2, -1, -1)
        loss = F.cross_entropy(logits["out"], target) + F.cross_entropy(logits["aux"], target) / 2
        loss.backward()
        results.append(logits)
    assert_agree(results[1], results[0])
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        difference = (gradients[name] - parameter.grad).norm()
        assert difference <= 1e-9 * parameter.grad.norm() + 1e-12, name
    for name, expected in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), expected)


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet50", 42_004_074), ("resnet101", 60_996_202)]
)
def test_parameter_counts(backbone, count):
    with torch.device("meta"):
        network = deeplab_v3(backbone=backbone, layout="torchvision", aux=True)
    assert sum(p.numel() for p in network.parameters()) == count


def test_every_convolution_is_ours(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    # The stem, 16 units of 3, 4 projections; ASPP; its head; the auxiliary classifier.
    assert len(convolutions) == 1 + 48 + 4 + 6 + 2 + 2
    assert {type(m) for m in convolutions} == {AtrousConv2d}


def rates(network):
    """Rates of the last stage's units and of ASPP."""
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
        ({"backbone": "vgg16"}, "backbone must be one of resnet50, resnet101, got 'vgg16'"),
        ({"output_stride": 4}, "output_stride must be 8 or 16, got 4"),
        ({"layout": "caffe"}, "layout must be 'paper' or 'torchvision', got 'caffe'"),
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
def test_on_every_device(model, images, device):
    network = copy.deepcopy(model).to(device)
    expected = model(images)
    moved = {key: value.cpu() for key, value in network(images.to(device)).items()}
    for key, value in expected.items():
        assert (moved[key] - value).abs().max() <= 1e-3 * value.abs().max()


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
