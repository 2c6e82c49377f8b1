"""to_torch: the same numbers without any operator of this package."""

import warnings

import pytest
import torch
from torch import nn

import atrousx
from atrousx import AtrousConv2d, BilinearUpsample2d
from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, to_torch

BUILDERS = {
    "v1": lambda: deeplab_v1(num_classes=3, multi_scale_features=True),
    "v2": lambda: deeplab_v2(num_classes=3, backbone="vgg16", head="large_fov"),
    "v3": lambda: deeplab_v3(num_classes=3, aux=True),
}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]().eval()


def test_equals_the_model_without_our_operators(model):
    twin, image = to_torch(model), torch.randn(1, 3, 33, 41)
    assert not any(isinstance(module, AtrousConv2d) for module in twin.modules())
    assert any(isinstance(module, AtrousConv2d) for module in model.modules())
    with torch.inference_mode():
        expected = model(image)["out"]
        assert (twin(image)["out"] - expected).abs().max() <= 1e-4 * expected.abs().max()
    exported = torch.export.export(twin, (image,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any("upsample_bilinear2d" in target for target in targets)
    assert not [target for target in targets if "atrousx" in target]


def test_weights_and_keys_are_shared(model):
    twin = to_torch(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in twin.named_parameters())


def test_onnx(model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    image, path = torch.randn(1, 3, 65, 65), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(to_torch(model), (image,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(path))
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.inference_mode():
        expected = model(image)["out"]
    difference = (torch.from_numpy(found) - expected).abs().max()
    assert difference <= 1e-4 * expected.abs().max()


def test_layers_alone():
    upsample = to_torch(nn.Sequential(BilinearUpsample2d(scale_factor=2)))
    assert upsample(torch.ones(1, 1, 3, 3)).shape == (1, 1, 6, 6)
    assert type(to_torch(AtrousConv2d(1, 2, 3))) is nn.Conv2d
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        to_torch(3)


def test_an_optimized_model_is_refused():
    optimized = atrousx.optimize(nn.Sequential(nn.Conv2d(1, 8, 3)).eval())
    with pytest.raises(ValueError, match=r"model is a result of atrousx\.optimize, .* convert the"):
        to_torch(optimized)
