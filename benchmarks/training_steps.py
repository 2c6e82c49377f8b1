"""One training step of DeepLab v3 in several forms, and the memory that such a step needs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timing import DTYPES, peak_memory
from torch import Tensor, nn
from torchvision_models import twin

from atrousx.doctor.timing import fair_settings
from atrousx.models import deeplab_v3, recompute_activations

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 21
IGNORED = 255
# torchvision's reference training of DeepLab: references/segmentation/train.py.
LEARNING_RATE, AUX_MULTIPLIER, MOMENTUM, WEIGHT_DECAY = 0.01, 10, 0.9, 1e-4
AUX_WEIGHT = 0.5
# Pixels of the step that makes the optimizer's state before memory is measured.
WARM_UP_EXTENT = 33


def reference_loss(logits: Mapping[str, Tensor], target: Tensor) -> Tensor:
    """Returns the loss of torchvision's reference training, of logits at the labels' size."""
    out, aux = (F.cross_entropy(logits[k], target, ignore_index=IGNORED) for k in ("out", "aux"))
    return out + AUX_WEIGHT * aux


# The loss of a model, images and labels.
Loss = Callable[[Any, Tensor, Tensor], Tensor]
SIDES: dict[str, Loss] = {
    "atrousx": lambda model, images, target: model(images, target),
    "recomputed": lambda model, images, target: model(images, target),
    "full_size_logits": lambda model, images, target: model.loss(model(images), target),
    "torchvision": lambda model, images, target: reference_loss(model(images), target),
}


@dataclass(frozen=True)
class Case:
    """What all sides compute."""

    device: str
    dtype: str
    memory_format: str
    batch: int
    extent: int
    width: float = 1.0


class Step:
    """Forward, loss, backward and the optimizer's step of one side, always on the same batch.

    All sides of a case have the same weights, images and labels. The weights are float32;
    autocast chooses bfloat16.
    """

    def __init__(self, side: str, case: Case) -> None:
        self.loss, self.case = SIDES[side], case
        self.device = torch.device(case.device)
        torch.manual_seed(0)
        model: nn.Module | None
        model = deeplab_v3(CLASSES, layout="torchvision", aux=True, width=case.width)
        if side == "recomputed":
            recompute_activations(model)
        if side == "torchvision":
            model = twin(model, "resnet50", aux=True)
            if model is None:
                raise ModuleNotFoundError("torchvision is not installed")
        layout: dict[str, Any] = {"memory_format": FORMATS[case.memory_format]}
        self.model = model.to(self.device).to(**layout).train()
        auxiliary: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (auxiliary if name.startswith("aux_classifier.") else rest).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": auxiliary, "lr": LEARNING_RATE * AUX_MULTIPLIER},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
        )
        self.batch = self.random_batch(case.extent)

    def random_batch(self, extent: int) -> tuple[Tensor, Tensor]:
        """Returns images, and labels of which some do not count."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.case.batch, 3, extent, extent, generator=generator)
        labels = torch.randint(CLASSES + 1, (self.case.batch, extent, extent), generator=generator)
        labels[labels == CLASSES] = IGNORED
        images = images.to(self.device).to(memory_format=FORMATS[self.case.memory_format])
        return images, labels.to(self.device)

    def __call__(self) -> Tensor:
        return self.on(self.batch)

    def on(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Changes the weights once; returns the loss."""
        half = DTYPES[self.case.dtype] != torch.float32
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss = self.loss(self.model, *batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def peak(self) -> float:
        """Returns the MiB that a step needs beside weights, optimizer's state and batch."""
        self.optimizer.zero_grad(set_to_none=True)
        return peak_memory(self, self.device)


def differences(one: Step, other: Step) -> tuple[float, float]:
    """Runs the first step of two sides with the same dropout, and compares them.

    Returns:
        The relative difference of the losses, and of all gradients as one vector.
    """
    losses, gradients = [], []
    for step in (one, other):
        torch.manual_seed(1)
        losses.append(float(step()))
        gradients.append([p.grad.double() for p in step.model.parameters() if p.grad is not None])
    apart = sum(float((a - b).square().sum()) for a, b in zip(*gradients, strict=True))
    whole = sum(float(gradient.square().sum()) for gradient in gradients[1])
    return abs(losses[0] - losses[1]) / abs(losses[1]), (apart / whole) ** 0.5


def peak_of(side: str, case: Case) -> float:
    """Returns the peak memory of one step in a process that has computed nothing of this size.

    In a process that has, the system's allocator and the libraries keep memory, and a step would
    seem to need less. A GPU's memory is counted by PyTorch, so there use ``Step.peak``.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_fresh_peak, side, case, torch.get_num_threads()).result()


def _fresh_peak(side: str, case: Case, threads: int) -> float:
    torch.set_num_threads(threads)
    with fair_settings(case.dtype):
        step = Step(side, case)
        step.on(step.random_batch(WARM_UP_EXTENT))
        return step.peak()
