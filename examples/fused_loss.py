"""A training loop of your own with the fused loss: logits are never stored at the labels' size.

    python examples/fused_loss.py --steps 40

The task is made up: each pixel of a picture is to be labelled by its colour, red, green or blue.
The network sees one pixel in eight, as DeepLab does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import atrousx


def batch(count: int = 4, size: int = 96, patch: int = 24) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, size, size] of coloured squares with noise, and labels [N, size, size]."""
    squares = torch.randint(3, (count, size // patch, size // patch))
    labels = squares.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    images = torch.eye(3)[labels].movedim(-1, 1)
    return images + 0.5 * torch.randn_like(images), labels


def main(arguments: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    steps: int = parser.parse_args(arguments).steps
    torch.manual_seed(0)

    atrous = atrousx.AtrousConv2d(32, 32, 3, padding=2, dilation=2)
    first, last = nn.Conv2d(3, 32, 8, stride=8), nn.Conv2d(32, 3, 1)
    network = nn.Sequential(first, nn.ReLU(), atrous, nn.ReLU(), last)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        images, labels = batch()
        logits = network(images)  # [N, 3, 12, 12]
        # The value and the gradient of cross_entropy(interpolate(logits, (96, 96)), labels).
        loss = atrousx.ops.upsample_cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            # Likewise argmax(interpolate(logits, (96, 96))).
            found = atrousx.ops.upsample_argmax(logits.detach(), labels.shape[-2:])
            right = (found == labels).float().mean().item()
            print(f"step {step:3d}  loss {losses[-1]:.3f}  pixels labelled right {right:.1%}")
    return losses


if __name__ == "__main__":
    main()
