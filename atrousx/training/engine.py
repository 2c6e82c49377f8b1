"""The training loop: steps, evaluations, checkpoints, and going on where a run was stopped."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import _version, backend
from .._processes import is_first, rank_and_world
from ..data import Sample, SegmentationDataset
from ..metrics import Evaluation, Labels, evaluate
from ..models.checkpoints.description import preprocess_state
from ..models.segmenter import Segmenter
from .checkpoint import Checkpoints, weights_of
from .frequencies import median_frequency_weights
from .loading import StepBatch, mean_pixel, step_batches
from .losses import criterion_of
from .network import builder_arguments
from .processes import mean_over_processes, parallel, prepared, shared_only_if
from .recipe import Recipe
from .running import Running, Stopped, TrainingError
from .schedule import rate_factor
from .signals import noticed_signals
from .watch import Progress, Watcher

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Trains one network by one recipe.

    The state after an iteration depends on the recipe, the data and the start alone: the order of
    the images, their augmentation and dropout are drawn from the seed and the iteration. So a run
    that is continued computes the same bits as one that was not stopped.

    Args:
        model: the network, as ``build_network`` returns it.
        recipe: how to train.
        dataset: the training images.
        validation: the images to evaluate on; None evaluates nothing.
        running: folder, device and how often to save.
        watchers: see every line of the log.
    """

    def __init__(
        self,
        model: Segmenter,
        recipe: Recipe,
        dataset: SegmentationDataset,
        validation: SegmentationDataset | None,
        running: Running,
        *,
        watchers: list[Watcher],
    ) -> None:
        self.recipe, self.dataset, self.validation = recipe, dataset, validation
        self.running, self.watchers = running, watchers
        self.parts = recipe.accumulate * rank_and_world()[1]
        if recipe.batch_size % self.parts:
            raise TrainingError(
                f"batch_size must be a multiple of {self.parts} (processes times accumulate), "
                f"got {recipe.batch_size}"
            )
        self.model = prepared(model, recipe, running.device)
        self.average = None
        if recipe.ema:
            mean = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=mean)
        # After the copy for the average, which must not share the compiled function.
        self.network = parallel(self.model, recipe)
        self.optimizer = self._optimizer()
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(
            running.device.type, enabled=recipe.precision == "float16"
        )
        self.checkpoints = Checkpoints(running.out, running.keep)
        self.iteration, self.best = 0, -1.0
        self.class_weight: Tensor | None = None
        self._stop_signal = 0

    def _optimizer(self) -> torch.optim.SGD:
        recipe = self.recipe
        groups = self.model.parameter_groups(
            recipe.lr,
            recipe.weight_decay,
            head=recipe.head_multiplier,
            bias=recipe.bias_multiplier,
            aux=recipe.aux_multiplier,
            decay_all=recipe.decay_all,
        )
        return torch.optim.SGD(groups, momentum=recipe.momentum)

    @property
    def result(self) -> Segmenter:
        """The network to use, which has the averaged weights if the recipe averages them."""
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, Segmenter)
        return averaged

    def run(self) -> Evaluation | None:
        """Trains up to the recipe's last iteration, and returns the last evaluation.

        Raises:
            TrainingError: the loss is no number.
            CheckpointError: a checkpoint cannot be written.
            Stopped: a signal asked the process to end.
        """
        torch.manual_seed(self.recipe.seed)
        if self.recipe.class_weights != "none" and self.class_weight is None:
            self.class_weight = median_frequency_weights(self.dataset)
        found, first = None, self.iteration
        with noticed_signals(self._notice), self._backend():
            for images, targets in self._batches():
                loss = self._step(images, targets)
                if self.iteration == first and rank_and_world()[1] > 1:
                    # All processes compute with the same kernels, where these were chosen by time.
                    backend.broadcast(src=0)
                self.iteration += 1
                found = self._after_step(loss)
        return found

    def _batches(self) -> Iterator[StepBatch]:
        return step_batches(
            self.dataset,
            self.recipe,
            self.iteration,
            fill=mean_pixel(self.model.preprocess),
            workers=self.running.workers,
            device=self.running.device,
        )

    # One step

    def _step(self, images: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Changes the weights once; returns the loss of this process's images."""
        recipe, device = self.recipe, self.running.device
        self._set_rates()
        # Dropout draws the same numbers in a run that was continued.
        seeds = np.random.SeedSequence((recipe.seed, self.iteration, rank_and_world()[0]))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part, image in enumerate(images):
            last = part == len(images) - 1
            with shared_only_if(last, self.network):
                loss = self._loss(image, targets[part], targets)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def _loss(self, photographs: Tensor, target: Tensor, step_targets: list[Tensor]) -> Tensor:
        recipe, device = self.recipe, self.running.device
        images = self.model.preprocess(photographs)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        weight = None if self.class_weight is None else self.class_weight.to(device)
        ignored = self.dataset.ignore_index
        criterion = criterion_of(recipe.loss, weight, ignored, self.model.align_corners)
        with self._autocast():
            loss: Tensor = self.network(
                images,
                target,
                weight=weight,
                ignore_index=ignored,
                label_smoothing=recipe.label_smoothing,
                downsample_labels=recipe.downsample_labels,
                aux_weight=recipe.aux_weight,
                criterion=criterion,
                step_targets=step_targets,
                across_processes=True,
            )
        # Criteria are means of a micro-batch: a step has the mean of its micro-batches.
        return loss if criterion is None else loss / len(step_targets)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = PRECISIONS.get(self.recipe.precision)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.running.device.type, dtype)

    def _set_rates(self) -> None:
        factor = rate_factor(self.recipe, self.iteration)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    # After a step

    def _after_step(self, loss: Tensor) -> Evaluation | None:
        running, iteration = self.running, self.iteration
        is_last = iteration == self.recipe.iterations
        evaluates = self.validation is not None and (
            is_last or (running.evaluate_every and iteration % running.evaluate_every == 0)
        )
        saves = is_last or evaluates or iteration % running.save_every == 0
        if saves or iteration % running.log_every == 0 or iteration == 1:
            self._log_loss(loss)
        found = self._evaluate() if evaluates else None
        if saves or self._stop_signal:
            self._check_weights()
            is_best = found is not None and found.mean_iou() >= self.best
            if found is not None and is_best:
                self.best = found.mean_iou()
            if is_first():
                self.checkpoints.save(iteration, self.state_dict(), is_best)
        if self._stop_signal and not is_last:
            raise Stopped(self._stop_signal)
        return found

    def _log_loss(self, loss: Tensor) -> None:
        mean = mean_over_processes(loss)
        if not np.isfinite(mean):
            raise self._diverged(f"the loss is {mean}")
        self._tell("loss", loss=mean, lr=self.optimizer.param_groups[0]["lr"])

    def _check_weights(self) -> None:
        """Raises TrainingError for weights that must not be saved.

        The step after the last finite loss may have made them.
        """
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise self._diverged("a weight is not finite")

    def _diverged(self, what: str) -> TrainingError:
        kept = self.checkpoints.files()
        advice = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was saved"
        return TrainingError(
            f"{what} at iteration {self.iteration}: try a smaller learning rate; {advice}"
        )

    def _evaluate(self) -> Evaluation:
        assert self.validation is not None
        found = evaluate(
            self.result,
            self.validation,
            workers=self.running.workers,
            on_result=self._show,
        )
        confusion = found.final.confusion
        self._tell(
            "evaluation",
            mean_iou=confusion.mean_iou(),
            accuracy=confusion.accuracy(),
            iou=dict(zip(self.validation.classes, confusion.iou().tolist(), strict=True)),
        )
        return found

    def _show(self, index: int, sample: Sample, labels: Labels) -> None:
        for watcher in self.watchers:
            watcher.picture(self.iteration, index, sample, labels)

    def _tell(self, event: str, **values: Any) -> None:
        if is_first():
            progress = Progress(self.iteration, self.recipe.iterations, self.recipe.batch_size)
            for watcher in self.watchers:
                watcher.event(event, progress, values)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a run needs to go on. "model" has the weights to use."""
        training: dict[str, Any] = {
            "iteration": self.iteration,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "class_weight": self.class_weight,
        }
        if self.average is not None:
            training["model"] = weights_of(self.model)
            training["averaged"] = int(self.average.n_averaged)
        return {
            "model": weights_of(self.result),
            "network": {
                "version": self.recipe.model,
                "arguments": builder_arguments(self.recipe, self.dataset.num_classes),
                "preprocess": preprocess_state(self.model.preprocess),
            },
            "classes": list(self.dataset.classes),
            "recipe": self.recipe.state_dict(),
            "training": training,
            "backend": backend.state_dict(),
            "versions": {"atrousx": _version.__version__, "torch": str(torch.__version__)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was called.

        Raises:
            TrainingError: the state belongs to another recipe.
        """
        before = Recipe.of_state_dict(state["recipe"])
        if before != self.recipe:
            changed = [
                f"{name} was {value!r} and is {getattr(self.recipe, name)!r}"
                for name, value in before.state_dict().items()
                if value != getattr(self.recipe, name)
            ]
            raise TrainingError(f"the checkpoint is of another recipe: {'; '.join(changed)}")
        if list(self.dataset.classes) != state["classes"]:
            raise TrainingError("the checkpoint is of a data set with other classes")
        training = state["training"]
        self.iteration, self.best = training["iteration"], training["best"]
        self.class_weight = training["class_weight"]
        self.model.load_state_dict(training.get("model", state["model"]))
        self.optimizer.load_state_dict(copy.deepcopy(training["optimizer"]))
        self.scaler.load_state_dict(training["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["model"])
            self.average.n_averaged.fill_(training["averaged"])
        backend.load_state_dict(state["backend"])

    def _notice(self, number: int) -> None:
        self._stop_signal = number

    # Surroundings

    @contextlib.contextmanager
    def _backend(self) -> Iterator[None]:
        """Computes convolutions as the recipe says."""
        before = backend.get_backend()
        backend.set_backend(self.recipe.backend)
        try:
            yield
        finally:
            backend.set_backend(before)
