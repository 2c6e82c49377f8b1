"""Dense features from a classification network of timm, without new parameters.

    python examples/dense_timm_features.py --network resnet50 --output-stride 8

A classifier gives one feature for every 32 pixels. `to_dense` gives one for every 8 or 16, by the
same weights: strides become atrous rates. The script shows that every second or fourth feature is
the old one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import atrousx


def main(arguments: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50", help="a name of timm.list_models()")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--output-stride", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="of the image, a multiple of 32")
    args = parser.parse_args(arguments)
    try:
        import timm
    except ImportError:
        sys.exit("This example needs timm: pip install timm")

    torch.manual_seed(0)
    classifier: Any = timm.create_model(args.network, pretrained=args.pretrained).eval()
    dense = atrousx.models.to_dense(classifier, output_stride=args.output_stride)
    image = torch.rand(1, 3, args.size, args.size)
    with torch.inference_mode():
        features = dense(image)
        coarse = classifier.forward_features(image)
    step = features.shape[-1] // coarse.shape[-1]
    difference = (features[..., ::step, ::step] - coarse).norm() / coarse.norm()
    print(f"{args.network}: features {tuple(coarse.shape)} became {tuple(features.shape)}")
    print(f"those at every place {step} differ by {difference.item():.1e}, which is rounding")
    return features, coarse


if __name__ == "__main__":
    main()
