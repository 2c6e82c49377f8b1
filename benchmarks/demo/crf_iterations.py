"""Draws README's picture of the dense CRF: photograph, scores, labels before and after iterations.

    python benchmarks/demo/crf_iterations.py [--out benchmarks/demo/crf_iterations.png]

The photograph is scikit-image's astronaut (NASA, public domain). No network is involved. The scores
are made from the hand-drawn coarse_labels.png: blurred and sampled at every eighth pixel, like the
scores of a network of output stride 8. They are upsampled in the same way as DeepLab's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from demo import COARSE, side_by_side

from atrousx import DenseCRF, data, ops
from atrousx.data import png

STRIDE, BLUR, CONFIDENCE = 8, 10.0, 0.8
ITERATIONS = (1, 5, 10)
# The strokes miss the edges by about 15 pixels, so colours weigh more than for a network's scores.
CRF: dict[str, Any] = {
    "bilateral_weight": 8.0,
    "bilateral_sigma_xy": 50.0,
    "bilateral_sigma_rgb": 8.0,
    "gaussian_weight": 5.0,
    "gaussian_sigma_xy": 3.0,
}
PANEL = 288  # pixels


def network_like_scores(labels: data.Image, known: np.ndarray) -> torch.Tensor:
    """Returns log-probabilities [1, L, H / 8, W / 8] of the labels ``known`` [L]."""
    share = np.stack([cv2.GaussianBlur(np.float32(labels == k), (0, 0), BLUR) for k in known])
    probabilities = CONFIDENCE * share + (1 - CONFIDENCE) / len(known)
    return torch.from_numpy(probabilities[None, :, ::STRIDE, ::STRIDE].copy()).log()


def panels(photo: data.Image, labels: data.Image) -> dict[str, data.Image]:
    known = np.unique(labels)
    logits = ops.upsample_bilinear2d(network_like_scores(labels, known), size=labels.shape)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    colours = data.voc_palette()[known].astype(np.float32)
    beliefs = np.tensordot(logits.softmax(1)[0].numpy(), colours, ([0], [0]))
    found = {"photograph": photo, "scores": np.rint(beliefs).astype(np.uint8)}
    found["before"] = data.overlay(photo, known[logits.argmax(1)[0].numpy()])
    for count in ITERATIONS:
        winners = DenseCRF(len(known), **CRF, iterations=count)(logits, image).argmax(1)[0]
        caption = f"{count} iteration" + "s" * (count > 1)
        found[caption] = data.overlay(photo, known[winners.numpy()])
    return found


def write_indexed(path: Path, picture: data.Image, colours: int = 192) -> None:
    """Writes a PNG with few colours, which is a third of the size."""
    pixels = picture.reshape(-1, 3).astype(np.float32)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 12, 0)
    # OpenCV's types do not allow None, but its manual does: no initial labels.
    begin: Any = None
    _, _, centres = cv2.kmeans(pixels[::17], colours, begin, stop, 1, cv2.KMEANS_PP_CENTERS)
    centres = np.rint(centres).astype(np.int64)
    nearest = [
        ((part[:, None] - centres) ** 2).sum(2).argmin(1)
        for part in np.array_split(picture.reshape(-1, 3).astype(np.int64), 200)
    ]
    palette = np.zeros((256, 3), np.uint8)
    palette[:colours] = centres
    indices = np.concatenate(nearest).reshape(picture.shape[:2]).astype(np.uint8)
    path.write_bytes(png.encode_indexed(indices, palette))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = COARSE.with_name("crf_iterations.png")
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    found = panels(skimage.data.astronaut(), data.read_labels(COARSE))
    small: dict[str, Any] = {
        caption: cv2.resize(image, (PANEL, PANEL), interpolation=cv2.INTER_AREA)
        for caption, image in found.items()
    }
    rows = [dict(list(small.items())[i : i + 3]) for i in (0, 3)]
    write_indexed(args.out, np.concatenate([side_by_side(row) for row in rows]))
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
