"""What a person sees of a training: a line or a bar, a log in JSON lines, TensorBoard."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data import Sample, voc_palette
from ..metrics import Labels

LOG = "log.jsonl"
# TensorBoard shows the first images of the validation set.
SHOWN_PICTURES = 4


class Progress(NamedTuple):
    """How far a run is."""

    iteration: int
    iterations: int
    batch_size: int


class Watcher:
    """Is told what happens. The base class ignores everything."""

    def event(self, event: str, progress: Progress, values: dict[str, Any]) -> None:
        """Called with "loss" (loss, lr) or "evaluation" (mean_iou, accuracy, iou)."""

    def picture(self, iteration: int, index: int, sample: Sample, labels: Labels) -> None:
        """Called for each image of an evaluation."""

    def close(self) -> None:
        """Called at the end."""


class JsonLines(Watcher):
    """Appends one JSON object for each event to ``log.jsonl``.

    A run that goes on from an iteration drops the lines after it.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / LOG
        kept = [line for line in read_log(folder) if line["iteration"] <= iteration]
        partial = self.path.with_name(f".{LOG}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.path)

    def event(self, event: str, progress: Progress, values: dict[str, Any]) -> None:
        line = {"event": event, "iteration": progress.iteration, **_known(values)}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            # A failed write does not name its file.
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log. The last one may be cut off; it is left out then."""
    path = folder / LOG
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _known(value: Any) -> Any:
    """Replaces NaN by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Console(Watcher):
    """Shows loss, learning rate, images per second and the time left on standard error.

    On a terminal it is a bar, if tqdm is installed. Else each event is a line.
    """

    def __init__(self, iteration: int, iterations: int) -> None:
        self._bar: Any = None
        self._clock, self._before = time.monotonic(), iteration
        if sys.stderr.isatty():
            try:
                tqdm = importlib.import_module("tqdm").tqdm
            except ImportError:
                return
            self._bar = tqdm(total=iterations, initial=iteration, unit="it", dynamic_ncols=True)

    def event(self, event: str, progress: Progress, values: dict[str, Any]) -> None:
        if event == "evaluation":
            self._line(
                f"iteration {progress.iteration}: mean IoU {values['mean_iou']:.2%}, "
                f"accuracy {values['accuracy']:.2%}"
            )
            self._clock, self._before = time.monotonic(), progress.iteration
            return
        now = time.monotonic()
        done = progress.iteration - self._before
        seconds = max(now - self._clock, 1e-9)
        shown = f"loss {values['loss']:.4f}, rate {values['lr']:.3g}"
        if done:
            shown += f", {done * progress.batch_size / seconds:.3g} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(progress.iteration - self._bar.n)
        else:
            left = (progress.iterations - progress.iteration) * seconds / max(done, 1)
            when = f", {_duration(left)} left" if done and left else ""
            self._line(f"iteration {progress.iteration} of {progress.iterations}: {shown}{when}")
        self._clock, self._before = now, progress.iteration

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TensorBoard(Watcher):
    """Writes scalars, and some photographs beside truth and prediction, for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: Any = writer(folder / "tensorboard")

    def event(self, event: str, progress: Progress, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                for key, item in value.items():
                    self._writer.add_scalar(f"{name}/{key}", item, progress.iteration)
            else:
                self._writer.add_scalar(f"{event}/{name}", value, progress.iteration)

    def picture(self, iteration: int, index: int, sample: Sample, labels: Labels) -> None:
        if index >= SHOWN_PICTURES:
            return
        palette = voc_palette()
        found = labels.final.to(torch.uint8).cpu().numpy()
        shown = np.concatenate([sample.image, palette[sample.labels], palette[found]], axis=1)
        self._writer.add_image(f"validation/{sample.name}", shown, iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None
