"""Weights that people have on disk, into the models of this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..deeplab_v2 import SummedBranches
from ..preprocess import Preprocess
from ..segmenter import Segmenter
from .architecture import BUILDERS, architecture_of
from .files import read_weights
from .layouts import SOURCES, Layout, recognise, translate

Source = Literal[
    "auto",
    "deeplab_v1",
    "deeplab_v2",
    "deeplab_v3",
    "deeplab_v2_base",
    "deeplab_v2_scale",
    "resnet",
    "vgg16",
]
# Batch normalisation's counters: files from before PyTorch 0.4.1 lack them, inference ignores them.
OPTIONAL = ".num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did: keys of the model that were filled and that were not.

    Attributes:
        source: what the weights were recognised as, one of the sources of :func:`load_weights`.
        loaded: keys of the model that took a value.
        missing: keys of the model that the weights lack; they keep the values they had.
        left_over: keys of the weights that the model has no place for.

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
            lines.append(f"not in the weights, left as they were: {_abridged(self.missing)}")
        if self.left_over:
            lines.append(f"not in the model, ignored: {_abridged(self.left_over)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    source: Source = "auto",
    *,
    other_classes: bool = False,
) -> LoadReport:
    """Loads published or own weights into a model, all or nothing.

    ==================  ==========================================================================
    source              what it is
    ==================  ==========================================================================
    "deeplab_v1"        a ``state_dict`` of this package
    "deeplab_v2"        likewise
    "deeplab_v3"        likewise; torchvision's ``deeplabv3_resnet50`` and ``deeplabv3_resnet101``,
                        for ``layout="torchvision"``; or such with ``classifier.classifier.*``
    "deeplab_v2_base"   a PyTorch port's ``base.layer{1..5}.block{k}.*`` and ``base.aspp.c{0..3}``,
                        with or without ``base.``; of its COCO initialisation, which ends in ``fc``
                        in place of branches, the backbone
    "deeplab_v2_scale"  another's ``Scale.layer{1..4}.*`` and ``Scale.layer5.conv2d_list.{0..3}``,
                        with or without ``Scale.``
    "resnet"            torchvision's ImageNet ``resnet50`` and ``resnet101``, into
                        ``model.backbone``; their classifier ``fc`` is ignored
    "vgg16"             torchvision's ImageNet ``vgg16``: into ``deeplab_v1`` all but the last layer
                        (:func:`from_vgg16`, seed 0), into ``deeplab_v2`` the backbone
    ==================  ==========================================================================

    With either of the last two, ``model.preprocess`` becomes torchvision's, which they expect. The
    auxiliary classifier may be absent from either side. A checkpoint that holds the weights under
    "model", "model_state" or "state_dict" is unwrapped, and so is the prefix "module." of parallel
    training.

    Files are read with ``weights_only=True``, so that nothing in an untrusted one is executed.
    Values are converted to the dtype and device of the model.

    Args:
        model: a DeepLab of this package.
        path_or_state_dict: a file of ``torch.save``, a ``.safetensors`` file (needs the package
            safetensors), or a state_dict.
        source: one of the table, or "auto" to recognise it by its keys.
        other_classes: where the weights have another number of classes than the model, the layers
            that make the logits keep the model's values (and are reported as missing).

    Returns:
        What was recognised and loaded, what stayed as it was, what was ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a ``.safetensors`` file, and safetensors is not installed.
        TypeError: neither a path nor a state_dict.
        ValueError: the file is not a state_dict or holds more than tensors, is not recognised, or
            does not fit the model, with the keys and shapes that differ. The model is unchanged.

    Example:
        >>> import atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision")
        >>> report = atrousx.models.load_weights(model, model.state_dict())
        >>> print(report)
        362 tensors loaded, recognised as deeplab_v3
    """
    if source not in ("auto", *SOURCES):
        raise ValueError(f"source must be 'auto' or one of {', '.join(SOURCES)}, got {source!r}")
    weights = read_weights(path_or_state_dict)
    layout = recognise(weights)
    if layout is None or source not in ("auto", layout.name):
        wanted = "any layout known here" if source == "auto" else f"source={source!r}"
        raise ValueError(f"the weights are not those of {wanted}: {_abridged(tuple(weights))}")
    weights = translate(weights, layout, model)
    if other_classes:
        weights = _without_other_classes(model, weights)
    report = _compare(model, weights, layout, other_classes)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    if layout.name in ("resnet", "vgg16") and isinstance(model, Segmenter):
        model.preprocess = Preprocess.imagenet().to(model.preprocess.mean)
    return report


def from_weights(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor], **options: object
) -> Segmenter:
    """Builds the DeepLab that weights belong to, and loads them.

    Keys and shapes tell the paper, the backbone, v3's layout or cascade, v1's fc6, and the number
    of classes. What they cannot tell, the strides, rates and poolings, is the builder's default
    unless given: ``output_stride`` and ``multi_grid`` of v3, v2's ``head`` of four branches, and
    always ``fc6`` of v1 with 4x4 filters.

    Args:
        path_or_state_dict: as :func:`load_weights` has it, of a whole DeepLab in any layout.
        options: arguments for :func:`deeplab_v1`, :func:`deeplab_v2` or :func:`deeplab_v3`, beside
            or in place of those recognised.

    Returns:
        The model, in training mode as every new one.

    Raises:
        FileNotFoundError, ImportError, TypeError: as :func:`load_weights`.
        ValueError: likewise; or the weights are those of no builder's model, such as a
            classifier's, or do not tell ``fc6``.

    Source: the layouts of :func:`load_weights`.

    Example:
        >>> import atrousx
        >>> trained = atrousx.models.deeplab_v3(num_classes=5, head="cascade", blocks=4)
        >>> model = atrousx.models.from_weights(trained.state_dict())
        >>> model.classifier
        Sequential(
          (0): AtrousConv2d(2048, 5, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    weights = read_weights(path_or_state_dict)
    told = architecture_of(weights)
    if told is None:
        layout = recognise(weights)
        known = "an unknown layout" if layout is None else f"recognised as {layout.name}"
        raise ValueError(
            f"the weights ({known}) are not those of a whole DeepLab that can be built here: "
            f"{_abridged(tuple(weights))}"
        )
    arguments = told.arguments | options
    if told.version == "v1" and "fc6" not in arguments:
        raise ValueError(f"fc6 must be given, the weights are those of {told}")
    model = BUILDERS[told.version](**arguments)
    load_weights(model, weights)
    return model


def _compare(
    model: nn.Module, weights: Mapping[str, Tensor], layout: Layout, other_classes: bool
) -> LoadReport:
    """The report of loading ``weights``, or the error that says why they do not fit."""
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
                f"and {tuple(own[key].shape)} in the model{advice}"
            )
    misfits = _misfits(report, layout, last_layers(model) if other_classes else ())
    if misfits:
        raise ValueError(
            f"the weights ({layout.name}) do not fit the model: {'; '.join(misfits)}"
            f"{_other(own, weights)}"
        )
    return report


def _misfits(report: LoadReport, layout: Layout, excused: tuple[str, ...]) -> list[str]:
    """What of a report the layout does not allow, in words. ``excused``: layers that may lack."""

    def is_needed(key: str) -> bool:
        is_optional = key.endswith(OPTIONAL) or key.rpartition(".")[0] in excused
        return key.startswith(layout.needed) and not is_optional

    lacking = tuple(filter(is_needed, report.missing))
    unplaced = tuple(key for key in report.left_over if not key.startswith(layout.ignorable))
    found = [f"it lacks {_abridged(lacking)}"] if lacking else []
    return found + ([f"the model has no place for {_abridged(unplaced)}"] if unplaced else [])


def last_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions that make the logits."""
    names = []
    for name, head in model.named_modules():
        if name in ("classifier", "aux_classifier") and isinstance(head, nn.Sequential):
            names.append(f"{name}.{len(head) - 1}")
        if isinstance(head, SummedBranches):
            wanted = {id(layer) for layer in head.last_layers()}
            names += [f"{name}.{part}" for part, m in head.named_modules() if id(m) in wanted]
    return tuple(names)


def _without_other_classes(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights less those layers that make the logits of another number of classes."""
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
    """Of which model the weights are, where that is known and is another one."""
    theirs, ours = architecture_of(weights), architecture_of(own)
    if theirs is None or ours is None or theirs.for_any_classes() == ours.for_any_classes():
        return ""
    return f"; the weights are those of {theirs}, the model is {ours}"


def _abridged(keys: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(map(str, keys[:shown])) + more
