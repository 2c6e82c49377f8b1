"""Chains of layers that atrousx.optimize finds by data flow and folds, and uses that prevent it."""

from __future__ import annotations

import copy
import pickle
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import atrousx
from atrousx.inference import rewritten
from atrousx.inference.fused import FusedConv2d
from tests.models.torchvision_reference import random_state, segmentation


@pytest.fixture(params=["native", "torch"], autouse=True)
def _backend(request):
    before = atrousx.get_backend()
    atrousx.set_backend(request.param)
    yield
    atrousx.set_backend(before)


class Layers(nn.Module):
    """Two convolutions of 4 channels, a normalisation for each, and a ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.scale = 2


class Plain(Layers):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Residual(Layers):
    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)

    def doubled(self, x):
        return self.scale * self(x)


class SumOfTwo(Layers):
    def forward(self, x):
        return torch.relu(torch.add(self.bn(self.conv(x)), self.bn2(self.conv2(x))))


class Methods(Layers):
    def forward(self, x):
        return self.bn(self.conv(x)).add_(x).relu_()


class Helper(Layers):
    """The chain is in another function: normalisations fold, and the forward stays."""

    def forward(self, x):
        return self.block(x)

    def block(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn(self.conv(x))))))


class ByType(Layers):
    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x[0]
        return F.relu(self.bn(self.conv(x)) + x)


class Broadcast(Layers):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + self.conv2(x).mean((2, 3), keepdim=True))


class BroadcastPlainly(Layers):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + self.pool(x))


class ResidualFirst(Layers):
    def forward(self, x):
        return F.relu(x + self.bn(self.conv(x)))


class WritesIntoResidual(Layers):
    def forward(self, x):
        kept = self.relu(self.conv2(x))
        also = kept
        kept += self.bn(self.conv(x))
        return torch.cat([also, kept])


class UsedTwice(Layers):
    def forward(self, x):
        y = self.conv(x)
        return self.relu(self.bn(y)) + y


class TwoNorms(Layers):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn2(self.conv(x + 1))


class NormOfTwo(Layers):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn(self.conv2(x))


class Optional(Layers):
    def forward(self, x, mask=None):
        y = self.conv(x)
        if mask is not None:
            y = self.bn(y)
        return y


class Collects(Layers):
    """Uses the intermediate results between the layers of a chain."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(self.conv, nn.ReLU(inplace=False), self.conv2, self.bn2)

    def forward(self, x):
        seen = []
        for layer in self.chain:
            x = layer(x)
            seen.append(x)
        return torch.cat(seen, 1)


class Untraceable(Layers):
    """Branches on data. Its chain can be traced, and so can a layer that it calls itself."""

    def __init__(self):
        super().__init__()
        self.inner = Plain()
        self.chain = nn.Sequential(self.conv, self.bn)

    def forward(self, x):
        y = self.inner(x)
        return self.conv(y) if y.sum() > 0 else self.chain(y)


class Remembers(Layers):
    last = None

    def forward(self, x):
        self.last = F.relu(self.bn(self.conv(x)))
        return self.last


class ChangesItsInput(Layers):
    def forward(self, x):
        y = self.relu(self.conv2(x))
        z = self.bn(self.conv(y))
        return z + self.relu(y.add_(1))


# Normalisations that are left, layers that clip at the store, and whether a layer adds a residual.
EXPECTED = {
    Plain: (1, 1, False),
    Residual: (0, 2, True),
    SumOfTwo: (0, 1, True),
    Methods: (1, 1, True),
    Helper: (0, 0, False),
    ByType: (1, 0, False),
    Broadcast: (1, 0, False),
    BroadcastPlainly: (1, 1, True),
    ResidualFirst: (1, 1, True),
    WritesIntoResidual: (1, 1, False),
    UsedTwice: (2, 0, False),
    TwoNorms: (2, 0, False),
    NormOfTwo: (2, 0, False),
    Optional: (2, 0, False),
    Collects: (2, 0, False),
    Untraceable: (3, 1, False),
    Remembers: (1, 0, False),
    ChangesItsInput: (1, 1, False),
}


def prepared(model):
    model.load_state_dict(random_state(model))
    return model.eval()


def folded(model):
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    clips = sum(isinstance(m, FusedConv2d) and m.relu for m in model.modules())
    return norms, clips


@pytest.mark.parametrize("build", EXPECTED)
def test_same_function_by_data_flow(build):
    model = prepared(build())
    state = set(model.__dict__)
    fast = atrousx.optimize(model)
    norms, clips, _ = EXPECTED[build]
    assert folded(fast) == (norms, clips)
    assert set(fast.__dict__) == set(model.__dict__) == state
    for trial in range(2):
        torch.manual_seed(trial)
        x = torch.randn(2, 4, 7, 6)
        torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)


def test_sums_happen_at_the_store():
    for build, (_, _, adds) in EXPECTED.items():
        fast = atrousx.optimize(prepared(build()))
        with patch.object(FusedConv2d, "_fits", autospec=True, return_value=False) as asked:
            fast(torch.randn(1, 4, 5, 5))
        assert asked.called is adds, build


def test_a_rewritten_module_stays_what_it_was():
    model = prepared(Residual())
    fast = atrousx.optimize(model)
    x = torch.randn(1, 4, 6, 6)
    assert isinstance(fast, Residual)
    assert type(model) is Residual
    torch.testing.assert_close(fast.doubled(x), model.doubled(x), rtol=1e-4, atol=1e-5)
    stored = pickle.dumps(fast)
    again = [copy.deepcopy(fast), atrousx.optimize(fast), pickle.loads(stored)]
    rewritten._classes.clear()  # as in another process
    again.append(pickle.loads(stored))
    for other in again:
        assert isinstance(other, Residual)
        assert torch.equal(other(x), fast(x))


def test_hooks_on_a_rewritten_module_run():
    model = prepared(nn.Sequential(Residual()))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    atrousx.optimize(model)(torch.randn(1, 4, 6, 6))
    assert seen


def test_a_hooked_or_replaced_relu_stays():
    for change in (
        lambda relu: relu.register_forward_hook(lambda *_: None),
        lambda relu: setattr(relu, "forward", torch.sigmoid),
    ):
        model = prepared(Residual())
        change(model.relu)
        fast = atrousx.optimize(model)
        assert folded(fast) == (0, 0)
        x = torch.randn(1, 4, 6, 6)
        torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)


def test_a_residual_of_another_type_is_promoted():
    fast = atrousx.optimize(prepared(SumOfTwo()))
    fast.conv2.double()
    with torch.no_grad():
        fast.conv2.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        assert fast(torch.randn(1, 4, 6, 6)).dtype == torch.float64


@pytest.mark.parametrize("build", [Residual, SumOfTwo, BroadcastPlainly])
def test_compile_and_export(build):
    model = prepared(build())
    fast = atrousx.optimize(model)
    x = torch.randn(2, 4, 8, 6)
    expected = model(x.clone())
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x.clone()), expected, rtol=1e-4, atol=1e-5)
        sizes = ({2: torch.export.Dim("h", max=64), 3: torch.export.Dim("w", max=64)},)
        exported = torch.export.export(fast, (torch.randn(2, 4, 9, 11),), dynamic_shapes=sizes)
        torch.testing.assert_close(exported.module()(x.clone()), expected, rtol=1e-4, atol=1e-5)


def test_on_the_meta_device():
    fast = atrousx.optimize(prepared(Residual())).to("meta")
    assert fast(torch.empty(2, 4, 6, 5, device="meta")).shape == (2, 4, 6, 5)


def test_frozen_normalisations_are_folded():
    segmentation()
    from torchvision.ops import FrozenBatchNorm2d

    frozen = atrousx.models.freeze_bn(nn.Sequential(nn.BatchNorm2d(4)))[0]
    for norm in (frozen, FrozenBatchNorm2d(4)):
        chain = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
        fast = atrousx.optimize(chain)
        assert type(fast[1]) is nn.Identity
        x = torch.randn(1, 3, 6, 6)
        torch.testing.assert_close(fast(x), chain(x), rtol=1e-4, atol=1e-5)


# Normalisations, and convolutions whose results are clipped at the store.
TORCHVISION = {
    "resnet18": (20, 17),
    "mobilenet_v3_small": (34, 14),
    "shufflenet_v2_x0_5": (56, 37),
}


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.slow
def test_torchvisions_networks(name):
    segmentation()
    from torchvision import models

    model = prepared(getattr(models, name)(weights=None, num_classes=10))
    fast = atrousx.optimize(model)
    norms, clips = TORCHVISION[name]
    assert folded(model)[0] == norms
    assert folded(fast) == (0, clips)
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        errors = [(m(x) - exact).norm() for m in (fast, model)]
    # With so few numbers a handful of roundings decides, so either error may be the smaller one.
    assert errors[0] <= 5 * errors[1] + 1e-6 * exact.norm()


def test_torchvisions_pyramid():
    segmentation()
    from torchvision.models.segmentation.deeplabv3 import ASPP

    model = prepared(ASPP(8, [2, 3, 4], 6))
    fast = atrousx.optimize(model)
    assert type(fast).__name__ == "FusedASPP"
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_dense_extractor():
    segmentation()
    from torchvision.models import resnet18

    model = prepared(atrousx.models.to_dense(resnet18(weights=None), 8))
    fast = atrousx.optimize(model)
    assert folded(fast) == (0, 17)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pickle.loads(pickle.dumps(fast))(x), fast(x))
