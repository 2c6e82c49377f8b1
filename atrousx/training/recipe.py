"""A recipe: everything that determines a training run, except its data and its machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..data import Augmentation
from ..models.deeplab_v1 import FC6
from ..models.deeplab_v2 import RATES
from ..models.deeplab_v3 import BACKBONES as V3_BACKBONES
from ..models.deeplab_v3plus import BACKBONES as V3PLUS_BACKBONES
from ..models.forms import V3, V3PLUS, check_backbone

BACKBONES = {
    "v1": ("vgg16",),
    "v2": ("resnet101", "vgg16"),
    "v3": V3_BACKBONES,
    "v3plus": V3PLUS_BACKBONES,
}
LAYOUTS = {"v3": tuple(V3), "v3plus": tuple(V3PLUS)}
HEADS: dict[str, tuple[str, ...]] = {
    "v1": tuple(FC6),
    "v2": tuple(RATES),
    "v3": ("aspp", "cascade"),
    "v3plus": (),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "model": tuple(HEADS),
    "layout": tuple(V3),
    "schedule": ("poly", "step", "constant"),
    "loss": ("cross_entropy", "ohem", "dice", "lovasz"),
    "class_weights": ("none", "median_frequency"),
    "precision": ("float32", "bfloat16", "float16"),
    "backend": ("native", "auto", "measure", "torch"),
}
# Numbers that must be positive, and numbers that must not be negative.
POSITIVE = ("iterations", "batch_size", "accumulate", "lr", "width", "step_size", "power")
NOT_NEGATIVE = (
    *("min_lr", "momentum", "weight_decay", "warmup_iterations", "warmup_factor", "gamma"),
    *("head_multiplier", "bias_multiplier", "aux_multiplier", "aux_weight", "seed"),
)
SHARES = ("label_smoothing", "ema")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, except its data and its machine.

    ``RECIPES`` has those of the papers and of public code. ``replace`` changes fields of one.

    Args:
        model: "v1", "v2", "v3" or "v3plus".
        backbone: "vgg16", "resnet50", "resnet101", "xception65", "xception71" or "mobilenet_v2", as
            the model's builder allows.
        head: the form of the head: ``fc6`` of v1, ``head`` of v2 and v3. None is the builder's
            default.
        layout: "paper", "torchvision", "vainf", "smp" or "mmseg", of v3 and v3+.
        output_stride: image pixels per feature, of v3 and v3+. None is the builder's default.
        multi_grid: rates of the last block's units, of v3 and v3+. None is the builder's default.
        multi_scale: multi-scale features of v1; three scales of the image of v2.
        aux: an auxiliary classifier, of v3 and v3+.
        width: a factor for the channels of all layers.
        iterations: steps of the optimizer.
        batch_size: images of a step, of all processes and micro-batches together.
        accumulate: micro-batches of a step in each process; more take less memory.
        crop: height and width of the training images.
        scale: the smallest and the largest random scale of an image.
        scale_step: None draws any scale between them, a number only steps of this size.
        flip: whether half of the images are mirrored.
        lr: learning rate.
        schedule: "poly" multiplies it by ``(1 - t) ** power`` at the share t of the iterations,
            "step" by ``gamma`` after every ``step_size`` iterations, "constant" leaves it.
        power: see ``schedule``.
        min_lr: the learning rate at the end of "poly".
        step_size: see ``schedule``.
        gamma: see ``schedule``.
        warmup_iterations: iterations during which the rate rises linearly to the schedule's.
        warmup_factor: share of the rate at the start of the warm-up.
        momentum: of stochastic gradient descent.
        weight_decay: of the filters; see ``decay_all``.
        head_multiplier: factor of the learning rate of the layers that make the logits.
        bias_multiplier: factor of that of the biases of convolutions.
        aux_multiplier: factor of that of the auxiliary classifier.
        decay_all: whether biases and the parameters of normalisation decay as well.
        freeze_bn: whether batch normalisation keeps its statistics and parameters.
        sync_bn: whether normalisation uses the statistics of all processes, on GPUs.
        bn_momentum: the share of a batch in the running statistics. None is the builder's default.
        loss: "cross_entropy"; "ohem", of the hardest pixels only; "dice" or "lovasz", which are
            close to the IoU.
        class_weights: "median_frequency" weighs classes by the median of their frequencies divided
            by their own, in cross-entropy and "ohem".
        aux_weight: factor of the auxiliary classifier's loss.
        label_smoothing: share of the cross-entropy that is spread over all classes.
        downsample_labels: True shrinks the labels, False enlarges the logits, None does as the
            model's paper.
        precision: "float32", or autocast to "bfloat16" or "float16" (with a gradient scaler).
        channels_last: whether feature maps have this memory format.
        recompute: whether the backward pass computes normalisation and ReLU of a ResNet again, as
            ``recompute_activations`` does, for less memory.
        compile: whether ``torch.compile`` compiles the network.
        ema: decay of a moving average of the weights, which is then evaluated and saved, for
            instance 0.999. 0 is none.
        backend: who computes convolutions, as in ``atrousx.set_backend``.
        seed: seed of the weights, the order of images, the augmentation and dropout.

    Raises:
        TypeError, ValueError: a field has none of the values above.

    Source: arXiv:1412.7062 section 4.1, arXiv:1606.00915 section 4.1, arXiv:1706.05587 section 4.1,
    arXiv:1802.02611 section 4.

    Example:
        >>> from atrousx.training import RECIPES
        >>> recipe = RECIPES["v3_os16"].replace(iterations=200, batch_size=8)
        >>> recipe.lr, recipe.crop, recipe.iterations
        (0.007, (513, 513), 200)
    """

    model: Literal["v1", "v2", "v3", "v3plus"] = "v3"
    backbone: str = "resnet50"
    head: str | None = None
    layout: Literal["paper", "torchvision", "vainf", "smp", "mmseg"] = "paper"
    output_stride: int | None = None
    multi_grid: tuple[int, ...] | None = None
    multi_scale: bool = False
    aux: bool = False
    width: float = 1.0
    iterations: int = 30000
    batch_size: int = 16
    accumulate: int = 1
    crop: tuple[int, int] = (513, 513)
    scale: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = None
    flip: bool = True
    lr: float = 7e-3
    schedule: Literal["poly", "step", "constant"] = "poly"
    power: float = 0.9
    min_lr: float = 0.0
    step_size: int = 2000
    gamma: float = 0.1
    warmup_iterations: int = 0
    warmup_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    head_multiplier: float = 1.0
    bias_multiplier: float = 1.0
    aux_multiplier: float = 1.0
    decay_all: bool = True
    freeze_bn: bool = False
    sync_bn: bool = False
    bn_momentum: float | None = None
    loss: Literal["cross_entropy", "ohem", "dice", "lovasz"] = "cross_entropy"
    class_weights: Literal["none", "median_frequency"] = "none"
    aux_weight: float = 0.5
    label_smoothing: float = 0.0
    downsample_labels: bool | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    recompute: bool = False
    compile: bool = False
    ema: float = 0.0
    backend: Literal["native", "auto", "measure", "torch"] = "native"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in POSITIVE:
            self._check(name, _is_number(value := getattr(self, name)) and value > 0, "positive")
        for name in NOT_NEGATIVE:
            self._check(name, _is_number(value := getattr(self, name)) and value >= 0, "at least 0")
        for name in SHARES:
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("iterations", "batch_size", "accumulate", "step_size", "seed"):
            self._check(name, isinstance(getattr(self, name), int), "a whole number")
        # Images of a batch must have one size, so a whole photograph is not enough.
        self._check("crop", self.crop is not None, "two positive whole numbers")
        self._check("scale", len(self.scale) == 2, "two positive numbers in order")
        Augmentation(self.crop, self.scale, self.scale_step, self.flip)  # checks the rest of them
        backbones, heads = BACKBONES[self.model], (None, *HEADS[self.model])
        self._check(
            "backbone", self.backbone in backbones, f"{' or '.join(backbones)} for {self.model}"
        )
        self._check("head", self.head in heads, f"one of {heads} for {self.model}")
        layouts = LAYOUTS.get(self.model, CHOICES["layout"])
        self._check(
            "layout", self.layout in layouts, f"one of {', '.join(layouts)} for {self.model}"
        )
        if self.model in LAYOUTS:
            check_backbone(self.backbone, self.layout, self.multi_grid, self.aux)
        has_resnet = self.backbone.startswith("resnet")
        self._check("recompute", has_resnet or not self.recompute, f"False for {self.backbone}")
        self._check(
            "batch_size", self.batch_size % self.accumulate == 0, "a multiple of accumulate"
        )

    def _check(self, name: str, is_right: bool, allowed: str) -> None:
        if not is_right:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

    def replace(self, **changes: Any) -> Recipe:
        """Returns a copy with other values of some fields.

        Raises:
            TypeError: there is no such field.
            ValueError: a value is not allowed.
        """
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise TypeError(f"a recipe has no field {', '.join(sorted(unknown))}")
        return dataclasses.replace(self, **changes)

    def state_dict(self) -> dict[str, Any]:
        """Returns the fields by name, for a checkpoint or a log."""
        return dataclasses.asdict(self)

    @classmethod
    def of_state_dict(cls, state: Mapping[str, Any]) -> Recipe:
        """Returns the recipe that ``state_dict`` described. JSON has lists in place of tuples."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state.items()
        }
        return cls(**fields)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
