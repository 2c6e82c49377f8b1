"""Rules that turn the keys of public DeepLab code into this package's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]

# VainF's DeepLabV3Plus-Pytorch. MobileNetV2 is in two parts there. Separable convolutions have a
# "body".
VAINF_PLUS: Rules = (
    (r"backbone\.(?:low|high)_level_features\.(.+)", r"backbone.features.\1"),
    (r"(classifier\..+)\.body\.([01])\.weight", r"\1.\2.weight"),
)
VAINF: Rules = (VAINF_PLUS[0], (r"classifier\.classifier\.(.+)", r"classifier.\1"))
# segmentation_models.pytorch. Old versions number the parts of v3's decoder.
SMP: Rules = (
    (r"encoder\.(.+)", r"backbone.\1"),
    (r"decoder\.(?:aspp|0)\.(convs|project)\.(.+)", r"classifier.0.\1.\2"),
    (r"decoder\.(?:conv|1)\.weight", r"classifier.1.weight"),
    (r"decoder\.(?:bn|2)\.(.+)", r"classifier.2.\1"),
    (r"segmentation_head\.0\.(.+)", r"classifier.4.\1"),
)
SMP_PLUS: Rules = (
    (r"encoder\.(.+)", r"backbone.\1"),
    (r"decoder\.aspp\.0\.(.+)", r"classifier.aspp.\1"),
    (r"decoder\.aspp\.1\.(.+)", r"classifier.refine.0.\1"),
    (r"decoder\.aspp\.2\.(.+)", r"classifier.refine.1.\1"),
    (r"decoder\.block1\.(.+)", r"classifier.project.\1"),
    (r"decoder\.block2\.(.+)", r"classifier.classifier.\1"),
    (r"segmentation_head\.0\.(.+)", r"classifier.classifier.3.\1"),
)


def _module(pattern: str, conv: str, norm: str) -> Rules:
    """Returns the rules of one of mmcv's modules of a convolution and a normalisation."""
    return ((rf"{pattern}\.conv\.(.+)", rf"{conv}.\1"), (rf"{pattern}\.bn\.(.+)", rf"{norm}.\1"))


def _separable(pattern: str, conv: str, norm: str) -> Rules:
    """Returns the rules of mmcv's separable convolution, which is normalised inside."""
    return (
        *_module(rf"{pattern}\.depthwise_conv", f"{conv}.0", f"{conv}.1"),
        *_module(rf"{pattern}\.pointwise_conv", f"{conv}.3", norm),
    )


def _mmseg(aspp: str) -> Rules:
    """Returns the rules that v3 and v3+ share; ``aspp`` is where this package's ASPP lies."""
    branches: list[tuple[str, str]] = []
    for index in range(4):
        pattern = rf"decode_head\.aspp_modules\.{index}"
        conv, norm = f"{aspp}.convs.{index}.0", f"{aspp}.convs.{index}.1"
        branches += [*_module(pattern, conv, norm), *_separable(pattern, conv, norm)]
    return (
        (r"backbone\.stem\.7\.(.+)", r"backbone.bn1.\1"),
        (r"backbone\.stem\.(.+)", r"backbone.conv1.\1"),
        *branches,
        *_module(r"decode_head\.image_pool\.1", f"{aspp}.convs.4.1", f"{aspp}.convs.4.2"),
        *_module(r"decode_head\.bottleneck", f"{aspp}.project.0", f"{aspp}.project.1"),
        *_module(r"auxiliary_head\.convs\.0", "aux_classifier.0", "aux_classifier.1"),
        (r"auxiliary_head\.conv_seg\.(.+)", r"aux_classifier.4.\1"),
    )


# mmsegmentation.
MMSEG: Rules = (
    *_mmseg("classifier.0"),
    (r"decode_head\.conv_seg\.(.+)", r"classifier.2.\1"),
)
MMSEG_PLUS: Rules = (
    *_mmseg("classifier.aspp"),
    *_module(r"decode_head\.c1_bottleneck", "classifier.project.0", "classifier.project.1"),
    *_separable(
        r"decode_head\.sep_bottleneck\.0", "classifier.classifier.0", "classifier.classifier.1"
    ),
    *_separable(
        r"decode_head\.sep_bottleneck\.1", "classifier.classifier.3", "classifier.classifier.4"
    ),
    (r"decode_head\.conv_seg\.(.+)", r"classifier.classifier.7.\1"),
)


def pooled_branch_last(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights with the image pooling as the last input of ASPP's projection.

    In mmsegmentation it is the first.
    """
    key = next((k for k in weights if k.endswith("decode_head.bottleneck.conv.weight")), None)
    if key is None:
        return dict(weights)
    filters = weights[key]
    pooled, others = filters[:, : len(filters)], filters[:, len(filters) :]
    return {**weights, key: torch.cat([others, pooled], dim=1)}
