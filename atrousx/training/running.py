"""How a training runs on this machine, and how it may end early."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence."""


class Stopped(Exception):
    """The process was asked to end. The state of the run is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    def __str__(self) -> str:
        return f"stopped by signal {self.signal_number}"


@dataclass(frozen=True)
class Running:
    """How a training runs on this machine; nothing here changes the result's bits.

    Args:
        out: folder of checkpoints and logs.
        device: of the network.
        workers: processes that read and augment images, for each training process.
        evaluate_every: iterations between evaluations; 0 evaluates only at the end.
        save_every: iterations between checkpoints.
        keep: number of the last checkpoints that stay.
        log_every: iterations between lines of the log.

    Raises:
        ValueError: a number is too small.
    """

    out: Path
    device: torch.device
    workers: int = 2
    evaluate_every: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "evaluate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
