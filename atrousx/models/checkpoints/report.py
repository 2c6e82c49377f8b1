"""Compares weights with a model: what fits, what is missing, and what is of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..heads import last_layers
from .architecture import architecture_of
from .layouts import Layout
from .words import abridged

# Counters of batch normalisation. Files from before PyTorch 0.4.1 lack them. Inference does not use
# them.
OPTIONAL = ".num_batches_tracked"
# Other classifiers, which training uses and a network without them does not need.
OTHER_HEADS = ("aux_classifier.", "aux_head.", "auxiliary_head.", "auxlayer.")


@dataclass(frozen=True)
class LoadReport:
    """The report of :func:`load_weights`: which keys were loaded and which were not.

    Attributes:
        source: the recognised source, one of those of :func:`load_weights`.
        loaded: keys of the model that got a value.
        missing: keys of the model that the weights lack. They keep their values.
        left_over: keys of the weights that the model does not have.

    Example:
        >>> from atrousx.models import LoadReport
        >>> print(LoadReport("resnet", ("backbone.conv1.weight",), (), ("fc.weight", "fc.bias")))
        1 tensors loaded, recognised as resnet
        not in the model, ignored: fc.weight, fc.bias
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, recognised as {self.source}"]
        if self.missing:
            lines.append(f"not in the weights, left as they were: {abridged(self.missing)}")
        if self.left_over:
            lines.append(f"not in the model, ignored: {abridged(self.left_over)}")
        return "\n".join(lines)


def compare(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    layout: Layout,
    other_classes: bool,
    suggestion: str = "",
) -> LoadReport:
    """Returns the report of loading ``weights``, or raises the error that says why they misfit.

    ``suggestion`` ends that error; it names what the weights probably are.
    """
    own = model.state_dict()
    report = LoadReport(
        source=layout.name,
        loaded=tuple(key for key in own if key in weights),
        missing=tuple(key for key in own if key not in weights),
        left_over=tuple(key for key in weights if key not in own),
    )
    for key in report.loaded:
        if own[key].shape != weights[key].shape:
            advice = _other(own, weights) or ("" if other_classes else _hint(model, key))
            raise ValueError(
                f"{key} has shape {tuple(weights[key].shape)} in the weights "
                f"and {tuple(own[key].shape)} in the model{suggestion or advice}"
            )
    misfits = _misfits(report, layout, last_layers(model) if other_classes else ())
    if misfits:
        raise ValueError(
            f"the weights ({layout.name}) do not fit the model: {'; '.join(misfits)}"
            f"{suggestion or _other(own, weights)}"
        )
    for key in report.loaded:
        if weights[key].is_meta and not own[key].is_meta:
            raise ValueError(f"{key} in the weights is on the meta device and has no values")
    return report


def _misfits(report: LoadReport, layout: Layout, excused: tuple[str, ...]) -> list[str]:
    """Describes what the layout does not allow in a report. ``excused`` layers may be missing."""

    def is_needed(key: str) -> bool:
        is_optional = key.endswith(OPTIONAL) or key.rpartition(".")[0] in excused
        return key.startswith(layout.needed) and not is_optional

    lacking = tuple(filter(is_needed, report.missing))
    ignorable = (*layout.ignorable, *OTHER_HEADS)
    unplaced = tuple(key for key in report.left_over if not key.startswith(ignorable))
    found = [f"it lacks {abridged(lacking)}"] if lacking else []
    return found + ([f"the model has no place for {abridged(unplaced)}"] if unplaced else [])


def without_other_classes(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights without the layers that make logits for another number of classes."""
    own = model.state_dict()
    other = {
        name
        for name in last_layers(model)
        if (bias := weights.get(f"{name}.bias")) is not None
        and bias.shape != own[f"{name}.bias"].shape
    }
    return {k: v for k, v in weights.items() if k.rpartition(".")[0] not in other}


def _hint(model: nn.Module, key: str) -> str:
    if key.rpartition(".")[0] not in last_layers(model):
        return ""
    return ": other_classes=True leaves this layer as the model has it"


def _other(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Returns words that name the weights' model, if it is known and differs from this model."""
    saved, built = architecture_of(weights), architecture_of(own)
    if saved is None or built is None or saved.for_any_classes() == built.for_any_classes():
        return ""
    return f"; the weights are those of {saved}, the model is {built}"
