"""Names what unrecognised weights probably are, from keys that only such weights have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Sign(NamedTuple):
    """Whose keys these are, keys that all such weights have, and beginnings that none has."""

    name: str
    keys: tuple[str, ...]
    absent: tuple[str, ...] = ()


SIGNS = (
    Sign(
        "torchvision's fcn_resnet50 or fcn_resnet101",
        ("backbone.conv1.weight", "classifier.0.weight", "classifier.1.weight"),
        ("classifier.0.convs.",),
    ),
    Sign("torchvision's lraspp_mobilenet_v3_large", ("classifier.low_classifier.weight",)),
    Sign(
        "torchvision's deeplabv3_mobilenet_v3_large",
        ("backbone.0.0.weight", "classifier.0.convs.0.0.weight"),
    ),
    Sign(
        "resnet18 or resnet34 of torchvision or timm",
        ("conv1.weight", "layer1.0.conv2.weight", "layer4.1.conv2.weight"),
        ("layer1.0.conv3.",),
    ),
    Sign("timm's ResNet-D, with a stem of three convolutions", ("conv1.0.weight", "bn1.weight")),
    Sign(
        "torchvision's VGG with batch normalisation",
        ("features.0.weight", "features.1.running_mean", "classifier.0.weight"),
    ),
    Sign("torchvision's vgg19", ("features.0.weight", "features.34.weight", "classifier.0.weight")),
    Sign("torchvision's MobileNet or EfficientNet", ("features.0.0.weight", "features.0.1.weight")),
    Sign("torchvision's DenseNet", ("features.conv0.weight", "features.norm0.weight")),
    Sign("timm's or another vision transformer", ("patch_embed.proj.weight",)),
    Sign("HuggingFace's ResNet", ("embedder.embedder.convolution.weight",)),
    Sign("HuggingFace's ResNet", ("resnet.embedder.embedder.convolution.weight",)),
    Sign(
        "HuggingFace's MobileNetV2 with DeepLab v3+",
        ("mobilenet_v2.conv_stem.first_conv.convolution.weight",),
    ),
    Sign("HuggingFace's MobileViT", ("mobilevit.conv_stem.convolution.weight",)),
    Sign("HuggingFace's SegFormer", ("segformer.encoder.patch_embeddings.0.proj.weight",)),
    Sign("a network of mmsegmentation", ("decode_head.conv_seg.weight",)),
    Sign("a network of segmentation_models_pytorch", ("segmentation_head.0.weight",)),
    Sign("a network of detectron2", ("backbone.stem.conv1.weight",)),
    Sign("a network of detectron2", ("stem.conv1.weight", "res2.0.conv1.weight")),
    Sign("a U-Net", ("inc.double_conv.0.weight", "outc.conv.weight")),
)


def near_miss(keys: Iterable[str]) -> str:
    """Returns words for an error that say whose keys these are, or an empty string.

    >>> near_miss(["backbone.stem.conv1.weight"])
    '; these look like the keys of a network of detectron2'
    """
    known = set(keys)
    for sign in SIGNS:
        has_other = any(key.startswith(sign.absent) for key in known) if sign.absent else False
        if known.issuperset(sign.keys) and not has_other:
            return f"; these look like the keys of {sign.name}"
    return ""
