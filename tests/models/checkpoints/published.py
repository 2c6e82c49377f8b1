"""State dicts in the format of published ports of DeepLab v2, built from a model's own weights."""

import torch

STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def port_with_base(model, prefix="base."):
    """Returns the state_dict of a port that wraps convolution and normalisation in one module."""
    own, port = model.state_dict(), {}

    def put(in_port, conv, norm):
        port[f"{prefix}{in_port}.conv.weight"] = own[f"backbone.{conv}.weight"]
        for name in STATISTICS:
            port[f"{prefix}{in_port}.bn.{name}"] = own[f"backbone.{norm}.{name}"]

    put("layer1.conv1", "conv1", "bn1")
    for stage in range(1, 5):
        for unit in range(len(getattr(model.backbone, f"layer{stage}"))):
            in_port, in_model = f"layer{stage + 1}.block{unit + 1}", f"layer{stage}.{unit}"
            put(f"{in_port}.reduce", f"{in_model}.conv1", f"{in_model}.bn1")
            put(f"{in_port}.conv3x3", f"{in_model}.conv2", f"{in_model}.bn2")
            put(f"{in_port}.increase", f"{in_model}.conv3", f"{in_model}.bn3")
            if unit == 0:
                put(f"{in_port}.shortcut", f"{in_model}.downsample.0", f"{in_model}.downsample.1")
    for branch in range(4):
        for name in ("weight", "bias"):
            port[f"{prefix}aspp.c{branch}.{name}"] = own[f"classifier.branches.{branch}.{name}"]
    assert len(port) == len(own)
    return port


def port_with_scale(model, prefix="Scale."):
    """Returns the state_dict of a port with torchvision's names, without counters as in older
    PyTorch."""
    port = {}
    for key, value in model.state_dict().items():
        key = key.replace("classifier.branches.", f"{prefix}layer5.conv2d_list.")
        if not key.endswith("num_batches_tracked"):
            port[key.replace("backbone.", prefix)] = value
    return port


def coco_initialisation(model):
    """Returns the initial weights of the first port's training: no ``base.``, and 91 scores of a
    1x1."""
    port = port_with_base(model, "")
    kept = {key: value for key, value in port.items() if not key.startswith("aspp.")}
    return kept | {"fc.weight": torch.ones(91, 2048, 1, 1), "fc.bias": torch.ones(91)}
