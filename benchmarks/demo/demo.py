"""Shows the main uses once, on a real photograph: refines coarse labels, and runs DeepLab v3.

    python benchmarks/demo/demo.py [--weights deeplabv3_resnet50.pth] [--out demo]

The photograph is scikit-image's astronaut (NASA, public domain). coarse_labels.png labels it with a
few straight hand-drawn strokes: person, aeroplane, background.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from atrousx import data, models
from atrousx.cli import main as atrousx
from atrousx.cli.segment import segment_image

HERE = Path(__file__).resolve().parent
COARSE = HERE / "coarse_labels.png"
# The strokes miss the edges by about 15 pixels. So labels weigh less, and colours more, than with a
# network's scores.
REFINE = {
    "--labels-confidence": 0.6,
    "--bilateral-weight": 8,
    "--bilateral-sigma-xy": 50,
    "--bilateral-sigma-rgb": 8,
    "--gaussian-weight": 5,
    "--gaussian-sigma-xy": 3,
}


def heading(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


def command(*arguments: object) -> None:
    """Prints an ``atrousx`` command and runs it, as a user would."""
    words = [str(a) for a in arguments]
    print(f"$ atrousx {' '.join(words)}", flush=True)
    if code := atrousx(words):
        sys.exit(code)


def refine_photograph(photo: Path, out: Path) -> None:
    refined = out / "refined_labels.png"
    start = time.perf_counter()
    command("refine", photo, COARSE, "--out", refined, *chain.from_iterable(REFINE.items()))
    print(f"{time.perf_counter() - start:.1f} s, reading and writing included")
    palette = data.voc_palette()
    panels = {
        "photograph": data.read_image(photo),
        "coarse labels": palette[data.read_labels(COARSE)],
        "refined by the dense CRF": palette[data.read_labels(refined)],
        "overlay": data.read_image(out / "refined_labels_overlay.png"),
    }
    data.write_image(out / "refined.png", side_by_side(panels))
    print(f"look at {out / 'refined.png'}")


def side_by_side(panels: dict[str, data.Image], gap: int = 8, strip: int = 32) -> data.Image:
    """Returns several pictures of the same height as one, each under its caption, on white."""
    columns = []
    for caption, image in panels.items():
        column = np.pad(image, ((strip, gap), (gap // 2, gap // 2), (0, 0)), constant_values=255)
        place, black = (gap, strip - 10), (0, 0, 0)
        cv2.putText(column, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.7, black, 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, axis=1)


def segment_photograph(photo: Path, out: Path, args: argparse.Namespace) -> None:
    if args.weights:
        command("segment", photo, "--weights", args.weights, "--out", out, "--crf")
        labels = data.read_labels(out / f"{photo.stem}_labels.png")
        found = [data.VOC_CLASSES[label] for label in np.unique(labels)]
        print(f"found: {', '.join(found)}; look at {out / f'{photo.stem}_overlay.png'}")
        return
    print("No weights were given: the network's weights are random, so its classes mean nothing.")
    print("This only shows that it runs. Give WEIGHTS=deeplabv3_resnet50.pth for a real result.")
    torch.manual_seed(0)
    model = models.deeplab_v3(num_classes=21, backbone="resnet50", layout="torchvision").eval()
    start = time.perf_counter()
    labels = segment_image(data.read_image(photo), model)
    size = f"{labels.shape[1]}x{labels.shape[0]}"
    print(f"DeepLab v3, ResNet-50, {size} pixels: {time.perf_counter() - start:.1f} s on the CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="state_dict of a DeepLab in any layout known here")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    photo = args.out / "astronaut.png"
    data.write_image(photo, skimage.data.astronaut())
    heading("Coarse labels refined by the dense CRF")
    refine_photograph(photo, args.out)
    heading("DeepLab v3")
    segment_photograph(photo, args.out, args)


if __name__ == "__main__":
    main()
