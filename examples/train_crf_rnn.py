"""Trains a small network and the dense CRF behind it together (CRF-as-RNN).

    python examples/train_crf_rnn.py --steps 60

Pictures are made up: a disc and a bar on a background, in colours with noise. The network sees one
pixel in four. The CRF learns its weights, compatibilities and sigmas from the same loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atrousx

COLOURS = torch.tensor([[90.0, 110.0, 100.0], [170.0, 90.0, 80.0], [90.0, 100.0, 180.0]])


def pictures(count: int, height: int = 32, width: int = 40) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] in 0..255, and labels [N, H, W]: background, disc, bar."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    a, b, c, d = torch.rand(4, count, 1, 1)
    disc = (y - height * a) ** 2 + (x - width * b) ** 2 < (height / 4) ** 2
    bar = (x - width * c + (d - 0.5) * y).abs() < width / 10
    labels = torch.where(bar, 2, disc.long())
    image = COLOURS[labels].movedim(-1, 1).contiguous()
    return (image + 12 * torch.randn_like(image)).clamp(0, 255), labels


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps: int = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU(), nn.Conv2d(16, 3, 1))
    crf = atrousx.DenseCRF(3, bilateral_sigma_xy=10, bilateral_sigma_rgb=40, trainable=True)
    optimizer = torch.optim.Adam([*network.parameters(), *crf.parameters()], lr=0.02)
    for step in range(steps):
        image, labels = pictures(4)
        logits = atrousx.ops.upsample_bilinear2d(network(image / 128 - 1), labels.shape[-2:])
        probabilities = crf(logits, image)
        loss = F.nll_loss(probabilities.clamp_min(1e-6).log(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alone = (logits.argmax(1) == labels).float().mean().item()
        refined = (probabilities.argmax(1) == labels).float().mean().item()
        if step % 10 == 0 or step == steps - 1:
            text = f"labelled right: {alone:.1%} by the network, {refined:.1%} with the CRF"
            print(f"step {step:3d}  loss {loss.item():.3f}  {text}")
    return alone, refined


if __name__ == "__main__":
    main()
