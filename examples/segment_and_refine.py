"""Labels a photograph with a DeepLab and moves the labels to its edges with the dense CRF.

    python examples/segment_and_refine.py photo.jpg --weights deeplabv3_resnet50_coco.pth

Without weights they are random, and so are the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import atrousx
from atrousx import data


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--weights", type=Path, help="of any DeepLab; without them, random ones")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for two pictures")
    args = parser.parse_args(arguments)

    if args.weights:
        model = atrousx.models.from_weights(args.weights)
    else:
        print("No --weights: the network is random, and its labels mean nothing.")
        model = atrousx.models.deeplab_v3(num_classes=21)
    fast: Any = atrousx.optimize(model.eval())  # a copy for inference, with the same methods

    photo = data.read_image(args.photo)  # [H, W, 3], RGB in 0..255
    image = torch.from_numpy(photo).permute(2, 0, 1)
    before, _, probabilities = fast.predict(image, flip=True, crf=False)
    # The defaults are those of DeepLab v2; each network has better ones (atrousx crf-search).
    crf = atrousx.DenseCRF(num_labels=probabilities.shape[1])
    with torch.inference_mode():
        after = crf(probabilities.clamp_min(1e-6).log(), image[None]).argmax(1)

    args.out.mkdir(parents=True, exist_ok=True)
    for name, labels in (("before", before), ("after", after)):
        path = args.out / f"{args.photo.stem}_{name}_crf.png"
        data.write_image(path, data.overlay(photo, labels[0].numpy()))
        print(f"look at {path}")
    changed = (before != after).float().mean().item()
    print(f"the CRF changed {changed:.1%} of the pixels")


if __name__ == "__main__":
    main()
