"""Builds DeepLab v1 from VGG-16's ImageNet weights: subsamples the fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..backbones.vgg import OUT_CHANNELS, Pooling
from ..deeplab_v1 import DeepLabV1, Fc6Name, deeplab_v1
from ..preprocess import Preprocess

EXTENT = 7  # height and width of the map that VGG-16's first fully connected layer reads
LINEARS = {0: (4096, OUT_CHANNELS * EXTENT**2), 3: (4096, 4096)}


def from_vgg16(
    state_dict: Mapping[str, Tensor],
    num_classes: int = 21,
    fc6: Fc6Name = "large_fov",
    multi_scale_features: bool = False,
    pooling: Pooling = "3x3",
    seed: int = 0,
    keep_classes: bool = False,
) -> DeepLabV1:
    r"""Builds DeepLab v1 from torchvision's ``vgg16`` classifier.

    The first fully connected layer of VGG-16 is a 7x7 convolution over 512 channels. Smaller
    kernels take these taps of it:

    .. math:: W'_{k,c,i,j} = W_{k,c,t_i,t_j}, \qquad
        t = (0, 2, 4, 6) \text{ for } 4 \times 4,\; (0, 3, 6) \text{ for } 3 \times 3

    "large_fov" also takes 1024 of the 4096 filters, chosen at random by ``seed``, and the rows and
    columns of the second layer that belong to them. The last layer and the multi-scale features get
    new random values. ``preprocess`` becomes torchvision's, which these weights expect.

    Args:
        state_dict: the ``state_dict`` of torchvision's ``vgg16``: ``features.*`` and
            ``classifier.{0,3,6}.*``. Its tensors are copied.
        num_classes, fc6, multi_scale_features, pooling: as in :func:`deeplab_v1`.
        seed: seed of the choice of filters and of the new layers' values.
        keep_classes: keeps the last layer too, so that the model has the classifier's classes. With
            ``fc6="7x7_r4"`` and ``pooling="2x2"`` the model then computes the classifier's scores
            densely.

    Raises:
        ValueError: a tensor is missing or has another shape. Also if ``keep_classes`` is used with
            "large_fov", with multi-scale features, or with a ``num_classes`` that differs from the
            classifier's.

    Source: arXiv:1412.7062 sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> from atrousx.models import deeplab_v1, from_vgg16
        >>> weights = {f"features.{k.split('.', 2)[2]}": v
        ...     for k, v in deeplab_v1().backbone.state_dict(prefix="backbone.").items()}
        >>> for layer, inputs in ((0, 25088), (3, 4096)):
        ...     weights[f"classifier.{layer}.weight"] = torch.zeros(4096, 1).expand(-1, inputs)
        ...     weights[f"classifier.{layer}.bias"] = torch.zeros(4096)
        >>> from_vgg16(weights, num_classes=2).classifier[0].weight.shape
        torch.Size([1024, 512, 3, 3])
    """
    # The meta device saves drawing a hundred million random values that are replaced anyway.
    with torch.device("meta"):
        model = deeplab_v1(
            num_classes, fc6, multi_scale_features=multi_scale_features, pooling=pooling
        )
    kept = vgg16_values(state_dict, model, seed)
    if keep_classes:
        kept |= _last_layer(state_dict, model)
    dtype = torch.get_default_dtype()
    copies = {key: value.detach().to(dtype, copy=True) for key, value in kept.items()}
    model.load_state_dict(copies, strict=False, assign=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.is_meta:
                module.to_empty(device="cpu")
                module.reset_parameters()
    model.preprocess = Preprocess.imagenet()
    return model


def vgg16_values(
    state_dict: Mapping[str, Tensor], model: DeepLabV1, seed: int = 0
) -> dict[str, Tensor]:
    """Returns values by the model's keys for all but its last layer and multi-scale features."""
    kept = {
        f"backbone.{key}": _take(state_dict, key, value.shape)
        for key, value in model.backbone.state_dict().items()
    }
    return kept | _decimated(state_dict, model, seed)


def _decimated(state_dict: Mapping[str, Tensor], model: DeepLabV1, seed: int) -> dict[str, Tensor]:
    """Returns the taps and filters of the first two fully connected layers that the model has."""
    first, second = (_take_linear(state_dict, index, *shape) for index, shape in LINEARS.items())
    chosen = torch.randperm(LINEARS[0][0], generator=torch.Generator().manual_seed(seed))
    filters = chosen[: model.fc6.width].sort().values
    taps = torch.linspace(0, EXTENT - 1, model.fc6.kernel).round().long()
    kernels = first[0].view(-1, OUT_CHANNELS, EXTENT, EXTENT)
    return {
        "classifier.0.weight": kernels[filters][:, :, taps][..., taps],
        "classifier.0.bias": first[1][filters],
        "classifier.3.weight": second[0][filters][:, filters, None, None],
        "classifier.3.bias": second[1][filters],
    }


def _take(state_dict: Mapping[str, Tensor], key: str, shape: Sequence[int]) -> Tensor:
    value = state_dict.get(key)
    if value is None:
        raise ValueError(f"state_dict must be that of torchvision's vgg16: it lacks {key}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{key} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    return value


def _take_linear(
    state_dict: Mapping[str, Tensor], index: int, outputs: int, inputs: int
) -> tuple[Tensor, Tensor]:
    weight = _take(state_dict, f"classifier.{index}.weight", (outputs, inputs))
    return weight, _take(state_dict, f"classifier.{index}.bias", (outputs,))


def _last_layer(state_dict: Mapping[str, Tensor], model: DeepLabV1) -> dict[str, Tensor]:
    last = cast(nn.Conv2d, model.classifier[6])
    classes, width = last.out_channels, last.in_channels
    if width != LINEARS[3][0]:
        raise ValueError(
            f"keep_classes needs a last layer of {LINEARS[3][0]} inputs: not fc6='large_fov' nor "
            "multi-scale features"
        )
    weight, bias = _take_linear(state_dict, 6, classes, width)
    return {"classifier.6.weight": weight[:, :, None, None], "classifier.6.bias": bias}
