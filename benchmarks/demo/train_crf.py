"""Fits a dense CRF's weights, compatibilities and sigmas to generated pictures (CRF-as-RNN).

    python benchmarks/demo/train_crf.py

The pictures show discs and bars on a background, in noisy colours. The scores to refine are blurred
over edges, noisy, and too confident in the background. The script prints the loss, and the accuracy
on other pictures.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

import atrousx
from atrousx.nn.dense_crf import PairwiseKernel

LABELS = 3  # background, disc, bar
COLOURS = torch.tensor([[90.0, 110.0, 100.0], [170.0, 90.0, 80.0], [90.0, 100.0, 180.0]])


def make_pictures(count: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits [N, L, H, W], images [N, 3, H, W] in 0..255, and labels [N, H, W]."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(count, height, width, dtype=torch.int64)
    for picture in labels:
        place = torch.rand(4, generator=random)
        radius = height / 4
        disc = (y - height * place[0]) ** 2 + (x - width * place[1]) ** 2 < radius**2
        bar = (x - width * place[2] + (place[3] - 0.5) * y).abs() < width / 10
        picture[disc] = 1
        picture[bar] = 2
    noise = torch.randn(count, 3, height, width, generator=random)
    image = (COLOURS[labels].movedim(-1, 1) + 12 * noise).clamp(0, 255)
    truth = F.one_hot(labels, LABELS).movedim(-1, 1).float().contiguous()
    blurred = F.avg_pool2d(truth, 5, stride=1, padding=2, count_include_pad=False)
    logits = 4 * blurred + 1.5 * torch.randn(truth.shape, generator=random)
    logits[:, 0] += 1
    return logits, image, labels


def measure(crf: atrousx.DenseCRF, pictures: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float]:
    """Returns the mean negative log-likelihood of the labels, and the share of correct pixels."""
    logits, image, labels = pictures
    probabilities = crf(logits, image)
    loss = F.nll_loss(probabilities.clamp_min(1e-6).log(), labels)
    accuracy = (probabilities.argmax(1) == labels).float().mean().item()
    return loss, accuracy


def fit(steps: int, size: tuple[int, int] = (24, 32), report: int = 0) -> dict[str, list[float]]:
    """Trains for ``steps``. Returns the losses, and the accuracy on other pictures before and
    after."""
    training, others = make_pictures(4, size, seed=0), make_pictures(4, size, seed=1)
    # The CRF starts with weak kernels and poor sigmas.
    crf = atrousx.DenseCRF(
        LABELS,
        bilateral_weight=1.0,
        bilateral_sigma_xy=5.0,
        bilateral_sigma_rgb=60.0,
        gaussian_weight=1.0,
        gaussian_sigma_xy=1.0,
        iterations=5,
        trainable=True,
    )
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    with torch.no_grad():
        history = {"loss": [], "accuracy": [measure(crf, others)[1]]}
    for step in range(steps):
        loss, accuracy = measure(crf, training)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history["loss"].append(loss.item())
        if report and step % report == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}  accuracy in training {accuracy:.2%}")
    with torch.no_grad():
        history["accuracy"].append(measure(crf, others)[1])
    if report:
        before, after = history["accuracy"]
        print(f"accuracy on other pictures: {before:.2%} before, {after:.2%} after training")
        for name, kernel in crf.named_children():
            assert isinstance(kernel, PairwiseKernel)
            sigma = ", ".join(f"{s:.3g}" for s in kernel.log_sigma.exp().tolist())
            print(f"{name}: weight {kernel.weight.item():.3g}, sigmas {sigma}")
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    torch.manual_seed(0)
    fit(parser.parse_args().steps, report=5)


if __name__ == "__main__":
    main()
