"""Takes the picture of a report that the page on evaluation shows, with headless Chromium.

    python docs/report_picture.py     # into docs/_static/

The scores are the truth of generated scenes, averaged over 8x8 pixels and made noisy. They stand
for a network; the CRF is the real one. The pictures are kept in the repository: building the
documentation needs no browser.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atrousx import DenseCRF
from atrousx.cli._evaluation import Extremes, Results
from atrousx.cli._evaluation.page import page
from atrousx.data import VOC, generate_scenes, opencv, read_image
from atrousx.metrics import Evaluation, Measures
from atrousx.metrics.trimap import WIDTHS

STATIC = Path(__file__).resolve().parent / "_static"
SCENES, STRIDE, NOISE, CERTAINTY = 12, 8, 0.28, 6.0
CRF: dict[str, Any] = {
    "bilateral_weight": 5.0,
    "bilateral_sigma_xy": 30.0,
    "bilateral_sigma_rgb": 10.0,
}
WIDTH, HEIGHT = 1120, 2480
QUALITY = 80
DARK = "@media (prefers-color-scheme: dark)"


def coarse_logits(truth: Tensor, classes: int) -> Tensor:
    """Returns logits [1, L, H, W] of blurred and noisy labels [H, W]."""
    hot = torch.stack([truth == label for label in range(classes)]).float()[None]
    coarse = F.avg_pool2d(hot, STRIDE, ceil_mode=True)
    coarse = coarse + NOISE * torch.randn(coarse.shape)
    logits = F.interpolate(coarse, size=truth.shape, mode="bilinear", align_corners=False)
    return CERTAINTY * logits


def report(folder: str) -> str:
    """Returns the page for generated scenes, which are written to a folder."""
    generate_scenes(folder, train=0, val=SCENES)
    dataset = VOC(folder, "val")
    classes = dataset.num_classes
    before, after = (Measures(classes, boundary=True, trimap_widths=WIDTHS) for _ in range(2))
    extremes, crf = Extremes(classes, count=3), DenseCRF(classes, **CRF)
    torch.manual_seed(0)
    for number in range(len(dataset)):
        sample = dataset[number]
        truth = torch.from_numpy(sample.labels)
        logits = coarse_logits(truth, classes)
        refined = crf(logits, torch.from_numpy(sample.image).permute(2, 0, 1)[None]).argmax(1)[0]
        before.update(logits.argmax(1)[0], truth)
        after.update(refined, truth)
        predicted = refined.numpy().astype(np.uint8)
        extremes.add(number, sample.name, sample.image, sample.labels, predicted)
    settings = {"weights": "coarse scores", "dataset": "generated scenes", "crf": CRF}
    results = Results(dataset.classes, Evaluation(before, after, len(dataset)), settings)
    return page(results, extremes)


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("the picture needs Chromium: install it and put it on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        text = report(f"{folder}/scenes")
        # The style of dark pages, for all pages or for none.
        for theme, rule in (("light", "@media not all"), ("dark", "@media all")):
            path = Path(folder) / f"{theme}.html"
            path.write_text(text.replace(DARK, rule))
            flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
            flags += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={folder}/{theme}.png"]
            subprocess.run([chromium, *flags, path.as_uri()], check=True, stderr=subprocess.DEVNULL)
            # WebP is a quarter of the PNG's size.
            picture = read_image(f"{folder}/{theme}.png")[..., ::-1]
            quality = [opencv().IMWRITE_WEBP_QUALITY, QUALITY]
            opencv().imwrite(str(STATIC / f"report-{theme}.webp"), picture, quality)


if __name__ == "__main__":
    main()
