"""Loads published weights into the models of this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..heads import last_layers
from ..preprocess import Preprocess
from ..segmenter import Segmenter
from .architecture import BUILDERS, architecture_of
from .files import StoredWeights, read_weights
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
# Counters of batch normalisation. Files from before PyTorch 0.4.1 lack them. Inference does not use
# them.
OPTIONAL = ".num_batches_tracked"


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
    """Loads weights into a model: published ones or your own. On an error nothing is loaded.

    ==================  ==========================================================================
    source              what it is
    ==================  ==========================================================================
    "deeplab_v1"        a ``state_dict`` of this package
    "deeplab_v2"        a ``state_dict`` of this package
    "deeplab_v3"        a ``state_dict`` of this package; or, for ``layout="torchvision"``,
                        torchvision's ``deeplabv3_resnet50`` or ``deeplabv3_resnet101``, also with
                        the keys ``classifier.classifier.*``
    "deeplab_v2_base"   a PyTorch port with ``base.layer{1..5}.block{k}.*`` and
                        ``base.aspp.c{0..3}``, with or without ``base.``. Its COCO initialisation
                        ends in ``fc`` in place of branches; only its backbone is loaded.
    "deeplab_v2_scale"  another port with ``Scale.layer{1..4}.*`` and
                        ``Scale.layer5.conv2d_list.{0..3}``, with or without ``Scale.``
    "resnet"            torchvision's ImageNet ``resnet50`` or ``resnet101``, loaded into
                        ``model.backbone``. Their classifier ``fc`` is ignored.
    "vgg16"             torchvision's ImageNet ``vgg16``. ``deeplab_v1`` gets all but the last layer
                        (:func:`from_vgg16`, seed 0), ``deeplab_v2`` gets the backbone.
    ==================  ==========================================================================

    With "resnet" and "vgg16", ``model.preprocess`` becomes torchvision's, which these weights
    expect. The auxiliary classifier may be missing in the weights or in the model. Checkpoints with
    the weights under "model", "model_state" or "state_dict" are unwrapped. The prefix "module." of
    parallel training is removed.

    Files are read with ``weights_only=True``, so nothing in an untrusted file is executed. Values
    are converted to the dtype and device of the model.

    Args:
        model: a DeepLab of this package.
        path_or_state_dict: a file of ``torch.save``, a ``.safetensors`` file (this needs the
            package safetensors), or a ``state_dict``.
        source: a source of the table, or "auto" to recognise it by the keys.
        other_classes: accepts weights for another number of classes. The layers that make the
            logits then keep the model's values and are reported as missing.

    Returns:
        A report of what was recognised, loaded, missing and ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the file is a ``.safetensors`` file, and safetensors is not installed.
        TypeError: ``path_or_state_dict`` is neither a path nor a ``state_dict``.
        ValueError: the file is not a ``state_dict`` or holds more than tensors, is not recognised,
            or does not fit the model. The message names keys and shapes that differ. The model does
            not change.

    Example:
        >>> import atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision")
        >>> report = atrousx.models.load_weights(model, model.state_dict())
        >>> print(report)
        362 tensors loaded, recognised as deeplab_v3
    """
    if source not in ("auto", *SOURCES):
        raise ValueError(f"source must be 'auto' or one of {', '.join(SOURCES)}, got {source!r}")
    stored = read_weights(path_or_state_dict)
    layout = recognise(stored)
    if layout is None or source not in ("auto", layout.name):
        wanted = "any layout known here" if source == "auto" else f"source={source!r}"
        raise ValueError(f"the weights are not those of {wanted}: {_abridged(tuple(stored))}")
    weights = translate(stored, layout, model)
    if other_classes:
        weights = _without_other_classes(model, weights)
    report = _compare(model, weights, layout, other_classes)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    if isinstance(model, Segmenter):
        model.preprocess = _preprocess(model, stored, layout).to(model.preprocess.mean)
    return report


def _preprocess(model: Segmenter, stored: StoredWeights, layout: Layout) -> Preprocess:
    """Returns how the network of the weights sees photographs."""
    if stored.network is not None:
        return Preprocess(**stored.network["preprocess"])
    return Preprocess.imagenet() if layout.name in ("resnet", "vgg16") else model.preprocess


def from_weights(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor], **options: object
) -> Segmenter:
    """Builds the DeepLab that weights belong to, and loads the weights.

    Keys and shapes determine the version, the backbone, the layout or cascade of v3, the ``fc6`` of
    v1, and the number of classes. They do not determine strides, rates and poolings. These have the
    builder's defaults unless ``options`` give them: for example ``output_stride`` and
    ``multi_grid`` of v3, and ``head`` of v2 with four branches. ``fc6`` of v1 with 4x4 filters must
    always be given. A checkpoint of ``atrousx train`` says all this itself, and how its network
    sees photographs.

    Args:
        path_or_state_dict: weights of a whole DeepLab, as in :func:`load_weights`, in any layout.
        options: arguments for :func:`deeplab_v1`, :func:`deeplab_v2` or :func:`deeplab_v3`, in
            addition to the recognised ones or instead of them.

    Returns:
        The model, in training mode like every new module.

    Raises:
        FileNotFoundError, ImportError, TypeError: as in :func:`load_weights`.
        ValueError: as in :func:`load_weights`. Also if no builder makes a model with these weights,
            for instance a classifier's, or if ``fc6`` must be given.

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
    if told.choice is not None and told.version == "v1" and "fc6" not in options:
        raise ValueError(f"fc6 must be given, the weights are those of {told}")
    model = BUILDERS[told.version](**arguments)
    load_weights(model, weights)
    return model


def _compare(
    model: nn.Module, weights: Mapping[str, Tensor], layout: Layout, other_classes: bool
) -> LoadReport:
    """Returns the report of loading ``weights``, or raises the error that says why they misfit."""
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
    """Describes what the layout does not allow in a report. ``excused`` layers may be missing."""

    def is_needed(key: str) -> bool:
        is_optional = key.endswith(OPTIONAL) or key.rpartition(".")[0] in excused
        return key.startswith(layout.needed) and not is_optional

    lacking = tuple(filter(is_needed, report.missing))
    unplaced = tuple(key for key in report.left_over if not key.startswith(layout.ignorable))
    found = [f"it lacks {_abridged(lacking)}"] if lacking else []
    return found + ([f"the model has no place for {_abridged(unplaced)}"] if unplaced else [])


def _without_other_classes(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _abridged(keys: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(map(str, keys[:shown])) + more
