"""Parameter groups: the papers' learning rates, and which parameters are in which group."""

import pytest
import torch

from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, freeze_bn

CLASSES = 5


def rates_of(model, **options):
    """Returns learning rate and weight decay by the parameters' names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in model.parameter_groups(**options)
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            deeplab_v1(CLASSES, width=0.1),
            {
                "backbone.features.0.weight": (1e-3, 5e-4),
                "backbone.features.0.bias": (2e-3, 0),
                "classifier.3.bias": (2e-3, 0),
                "classifier.6.weight": (1e-2, 5e-4),
                "classifier.6.bias": (2e-2, 0),
            },
        ),
        (
            deeplab_v2(CLASSES, width=0.1),
            {
                "backbone.conv1.weight": (2.5e-4, 5e-4),
                "classifier.branches.3.weight": (2.5e-3, 5e-4),
                "classifier.branches.3.bias": (5e-3, 0),
            },
        ),
        (
            deeplab_v2(CLASSES, "vgg16", width=0.1),
            {
                "backbone.features.28.bias": (5e-4, 0),
                "classifier.branches.0.3.weight": (2.5e-4, 5e-4),
                "classifier.branches.0.6.weight": (2.5e-3, 5e-4),
                "classifier.branches.0.6.bias": (5e-3, 0),
            },
        ),
        (
            deeplab_v3(CLASSES, width=0.1, aux=True),
            {
                "backbone.conv1.weight": (7e-3, 1e-4),
                "backbone.bn1.weight": (7e-3, 0),
                "backbone.bn1.bias": (7e-3, 0),
                "classifier.1.weight": (7e-3, 1e-4),
                "classifier.1.bias": (1.4e-2, 0),
                "aux_classifier.4.weight": (7e-3, 1e-4),
            },
        ),
    ],
    ids=["v1", "v2_resnet", "v2_vgg", "v3"],
)
def test_defaults_are_the_papers(model, expected):
    rates = rates_of(model)
    assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, pair in expected.items():
        assert rates[name] == pytest.approx(pair), name


def test_options_replace_the_defaults():
    model = deeplab_v3(CLASSES, width=0.1, aux=True, layout="torchvision")
    rates = rates_of(model, lr=0.01, weight_decay=1e-4, aux=10, bias=1, decay_all=True)
    assert {pair[1] for pair in rates.values()} == {1e-4}
    for name, (lr, _) in rates.items():
        assert lr == pytest.approx(0.1 if name.startswith("aux_classifier.") else 0.01), name


def test_frozen_parameters_are_in_no_group():
    model = freeze_bn(deeplab_v3(CLASSES, width=0.1))
    rates = rates_of(model)
    assert rates
    assert not [name for name in rates if ".bn" in name]
    assert len(model.parameter_groups(decay_all=True, bias=1)) == 1
    torch.optim.SGD(model.parameter_groups(), momentum=0.9)
