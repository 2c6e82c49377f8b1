"""Loads published weights into the models of this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from ..deeplab_v3 import DeepLabV3
from ..output_stride import set_output_stride
from ..preprocess import Preprocess
from ..segmenter import Segmenter
from .architecture import BUILDERS, Architecture, architecture_of
from .description import check_against_tensors
from .files import StoredWeights, read_weights
from .layouts import SOURCES, Layout, recognise, translate
from .near_misses import near_miss
from .report import LoadReport, compare, without_other_classes
from .words import abridged

Source = Literal[
    "auto",
    "deeplab_v1",
    "deeplab_v2",
    "deeplab_v3",
    "deeplab_v3plus",
    "deeplab_v2_base",
    "deeplab_v2_scale",
    "vainf",
    "smp",
    "mmseg",
    "resnet",
    "vgg16",
    "xception",
    "mobilenet_v2",
]

# How ImageNet's classifiers see photographs.
PREPROCESS = {
    "resnet": Preprocess.imagenet,
    "vgg16": Preprocess.imagenet,
    "mobilenet_v2": Preprocess.imagenet,
    "xception": Preprocess.tensorflow,
}


def load_weights(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    source: Source = "auto",
    *,
    other_classes: bool = False,
    ema: bool = False,
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
    "deeplab_v3plus"    a ``state_dict`` of this package, or VainF's with a ResNet
    "vainf"             VainF's DeepLabV3Plus-Pytorch with MobileNetV2
    "smp"               ``DeepLabV3`` and ``DeepLabV3Plus`` of segmentation_models.pytorch
    "mmseg"             ``deeplabv3`` and ``deeplabv3plus`` of mmsegmentation
    "deeplab_v2_base"   a PyTorch port with ``base.layer{1..5}.block{k}.*`` and
                        ``base.aspp.c{0..3}``, with or without ``base.``. Its COCO initialisation
                        ends in ``fc`` in place of branches; only its backbone is loaded.
    "deeplab_v2_scale"  another port with ``Scale.layer{1..4}.*`` and
                        ``Scale.layer5.conv2d_list.{0..3}``, with or without ``Scale.``
    "resnet"            torchvision's ImageNet ``resnet50`` or ``resnet101``, loaded into
                        ``model.backbone``. Their classifier ``fc`` is ignored.
    "xception"          timm's ImageNet ``xception65`` or ``xception71``, for ``model.backbone``
    "mobilenet_v2"      torchvision's ImageNet ``mobilenet_v2``, for ``model.backbone``
    "vgg16"             torchvision's ImageNet ``vgg16``. ``deeplab_v1`` gets all but the last layer
                        (:func:`from_vgg16`, seed 0), ``deeplab_v2`` gets the backbone.
    ==================  ==========================================================================

    With ImageNet's weights, ``model.preprocess`` becomes what these weights expect. The auxiliary
    classifier may be missing in the weights or in the model.

    Checkpoints of training scripts are read as they are. The weights may lie under names such as
    "model", "state_dict" or "model_state_dict", one inside the other. Prefixes of all keys, such as
    "module.", "_orig_mod." or "model.", are removed. The keys of a backbone may lack "backbone.".
    What else a checkpoint holds is ignored.

    Files are read with ``weights_only=True``, so nothing in an untrusted file is executed.
    Arguments of scripts, paths, dates and NumPy's scalars and arrays beside the weights are passed
    over. A file that imports anything else is refused. Values are converted to the dtype and device
    of the model.

    Args:
        model: a DeepLab of this package.
        path_or_state_dict: a file of ``torch.save`` or a safetensors file, whatever its name; the
            index of a file in shards (``*.safetensors.index.json``); a folder with such an index or
            with one ``.safetensors`` file; or a ``state_dict``.
        source: a source of the table, or "auto" to recognise it by the keys.
        other_classes: accepts weights for another number of classes. The layers that make the
            logits then keep the model's values and are reported as missing.
        ema: takes the running average (EMA) of the weights, which must be there. Else the plain
            weights are taken, and the average only if it is alone.

    Returns:
        A report of what was recognised, loaded, missing and ignored.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be opened.
        ImportError: it is a safetensors file, and the package safetensors is not installed.
        TypeError: ``path_or_state_dict`` is neither a path nor a ``state_dict``.
        ValueError: the file is damaged, imports what could execute code, holds no tensors by name,
            is not recognised, or does not fit the model; or a tensor is complex, sparse, quantized
            or without values. The message names the file, or keys and shapes. The model does not
            change.

    Example:
        >>> import atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision")
        >>> report = atrousx.models.load_weights(model, model.state_dict())
        >>> print(report)
        362 tensors loaded, recognised as deeplab_v3
    """
    if source not in ("auto", *SOURCES):
        raise ValueError(f"source must be 'auto' or one of {', '.join(SOURCES)}, got {source!r}")
    stored = read_weights(path_or_state_dict, ema=ema)
    layout, suggestion = recognise(stored), near_miss(stored)
    if layout is None or source not in ("auto", layout.name):
        wanted = "any layout known here" if source == "auto" else f"source={source!r}"
        keys = abridged(tuple(stored))
        raise ValueError(f"the weights are not those of {wanted}: {keys}{suggestion}")
    weights = translate(stored, layout, model)
    if other_classes:
        weights = without_other_classes(model, weights)
    report = compare(model, weights, layout, other_classes, suggestion)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    if isinstance(model, Segmenter):
        model.preprocess = _preprocess(model, stored, layout).to(model.preprocess.mean)
    return report


def _preprocess(model: Segmenter, stored: StoredWeights, layout: Layout) -> Preprocess:
    """Returns how the network of the weights sees photographs."""
    if stored.network is not None:
        return Preprocess(**stored.network["preprocess"])
    return PREPROCESS[layout.name]() if layout.name in PREPROCESS else model.preprocess


def from_weights(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    ema: bool = False,
    **options: object,
) -> Segmenter:
    """Builds the DeepLab that weights belong to, and loads the weights.

    Keys and shapes determine the version, the backbone, the layout or cascade of v3, the ``fc6`` of
    v1, and the number of classes. They do not determine strides, rates and poolings. These have the
    builder's defaults unless ``options`` give them: for example ``output_stride`` and
    ``multi_grid`` of v3, and ``head`` of v2 with four branches. ``fc6`` of v1 with 4x4 filters must
    always be given. Checkpoints of ``atrousx train`` and files of :func:`save_weights` say all this
    themselves, and how their network sees photographs.

    Args:
        path_or_state_dict: weights of a whole DeepLab, as in :func:`load_weights`, in any layout.
        ema: as in :func:`load_weights`.
        options: arguments for :func:`deeplab_v1`, :func:`deeplab_v2`, :func:`deeplab_v3` or
            :func:`deeplab_v3plus`, in addition to the recognised ones or instead of them.

    Returns:
        The model, in training mode like every new module.

    Raises:
        FileNotFoundError, OSError, TypeError: as in :func:`load_weights`.
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
    weights = read_weights(path_or_state_dict, ema=ema)
    told = architecture_of(weights)
    if told is None:
        layout = recognise(weights)
        known = "an unknown layout" if layout is None else f"recognised as {layout.name}"
        raise ValueError(
            f"the weights ({known}) are not those of a whole DeepLab that can be built here: "
            f"{abridged(tuple(weights))}{near_miss(weights)}"
        )
    if told.choice is not None and told.version == "v1" and "fc6" not in options:
        raise ValueError(f"fc6 must be given, the weights are those of {told}")
    model = _built(told, weights, options)
    load_weights(model, weights)
    return model


def _built(told: Architecture, weights: StoredWeights, options: dict[str, Any]) -> Segmenter:
    """Returns the model that the weights or their file tell, with random weights."""
    network = weights.network
    if network is not None:
        check_against_tensors(told, weights)
    try:
        model = BUILDERS[told.version](**told.arguments | options)
        stride = None if network is None else network.get("output_stride")
        if stride is not None and "output_stride" not in options:
            set_output_stride(cast(DeepLabV3, model), stride)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if network is None or options:
            raise
        raise ValueError(f"the file describes a network that cannot be built: {error}") from error
    return model
