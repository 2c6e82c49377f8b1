"""Records what public code computes with random weights: its keys, and what it makes of one image.

This script is not part of the tests. It runs where the public code is installed, as named in
``SOURCES``, and writes one JSON file a network beside itself:

    python tests/goldens/deeplab/record.py SOURCE NAME
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.models.random_weights import image, part_of, random_weights
from tests.models.torchvision_reference import segmentation

CLASSES = 5
Build = Callable[[], nn.Module]


def vainf(plus: bool, backbone: str, output_stride: int, separable: bool = False) -> Build:
    """github.com/VainF/DeepLabV3Plus-Pytorch, of October 2022; its folder must be on PYTHONPATH."""

    def build() -> nn.Module:
        from network import convert_to_separable_conv, modeling

        name = f"deeplabv3{'plus' if plus else ''}_{backbone}"
        model = getattr(modeling, name)(CLASSES, output_stride, pretrained_backbone=False)
        if separable:
            convert_to_separable_conv(model.classifier)
        return model

    return build


def smp(plus: bool, output_stride: int) -> Build:
    """segmentation-models-pytorch 0.6.0, from PyPI."""

    def build() -> nn.Module:
        import segmentation_models_pytorch

        name = f"DeepLabV3{'Plus' if plus else ''}"
        return getattr(segmentation_models_pytorch, name)(
            "resnet50",
            encoder_weights=None,
            classes=CLASSES,
            encoder_output_stride=output_stride,
        )

    return build


def mmseg(plus: bool) -> Build:
    """mmsegmentation 1.2.2 and mmcv-lite 2.1.0, from PyPI; the models of its configs/_base_."""

    def build() -> nn.Module:
        # These models do not use mmcv's compiled operators, which mmcv-lite lacks.
        sys.modules["mmcv.ops"] = MagicMock()
        from mmseg.models.backbones import ResNetV1c
        from mmseg.models.decode_heads import ASPPHead, DepthwiseSeparableASPPHead, FCNHead

        norm = {"type": "BN", "requires_grad": True}
        shared = {"num_classes": CLASSES, "norm_cfg": norm, "align_corners": False}
        aspp = {
            **shared,
            "in_channels": 2048,
            "in_index": 3,
            "channels": 512,
            "dilations": (1, 12, 24, 36),
            "dropout_ratio": 0.1,
        }

        class EncoderDecoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = ResNetV1c(
                    depth=50,
                    num_stages=4,
                    out_indices=(0, 1, 2, 3),
                    dilations=(1, 1, 2, 4),
                    strides=(1, 2, 1, 1),
                    norm_cfg=norm,
                    norm_eval=False,
                    style="pytorch",
                    contract_dilation=True,
                )
                self.decode_head = (
                    DepthwiseSeparableASPPHead(c1_in_channels=256, c1_channels=48, **aspp)
                    if plus
                    else ASPPHead(**aspp)
                )
                self.auxiliary_head = FCNHead(
                    in_channels=1024,
                    in_index=2,
                    channels=256,
                    num_convs=1,
                    concat_input=False,
                    dropout_ratio=0.1,
                    **shared,
                )

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                logits = self.decode_head(self.backbone(images))
                return nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")

        return EncoderDecoder()

    return build


def timm(name: str) -> Build:
    """timm 1.0, from PyPI: the features of a classification network."""

    def build() -> nn.Module:
        import timm

        model: Any = timm.create_model(name)
        model.forward = model.forward_features
        return model

    return build


SOURCES: dict[str, Build] = {
    "vainf_v3plus_resnet50": vainf(True, "resnet50", 16),
    "vainf_v3plus_resnet50_separable": vainf(True, "resnet50", 16, separable=True),
    "vainf_v3plus_mobilenet": vainf(True, "mobilenet", 16),
    "vainf_v3_resnet50": vainf(False, "resnet50", 16),
    "vainf_v3_mobilenet": vainf(False, "mobilenet", 8),
    "smp_v3plus": smp(True, 16),
    "smp_v3plus_os8": smp(True, 8),
    "smp_v3": smp(False, 8),
    "mmseg_v3plus": mmseg(True),
    "mmseg_v3": mmseg(False),
    "timm_xception65": timm("xception65"),
    "timm_xception71": timm("xception71"),
}


@torch.inference_mode()
def record(name: str) -> None:
    model = SOURCES[name]().eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(random_weights(shapes))
    result = model(image())
    found = {
        "source": SOURCES[name].__qualname__.partition(".")[0],
        "shapes": shapes,
        # A part of them, so that the file stays small.
        "values": [round(value, 7) for value in part_of(result).tolist()],
    }
    file = Path(__file__).with_name(f"{name}.json")
    file.write_text(json.dumps(found) + "\n")
    print(file, result.shape, float(result.std()))


if __name__ == "__main__":
    segmentation()  # torchvision, also for a PyTorch that it was not compiled for
    for wanted in sys.argv[1:] or SOURCES:
        record(wanted)
