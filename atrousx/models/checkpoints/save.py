"""Writes a model's weights so that other programs, and ``from_weights``, read them."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..._atomic import write_atomically
from ..backbones.resnet import ResNet
from ..deeplab_v3 import DeepLabV3
from ..deeplab_v3plus import DeepLabV3Plus
from ..output_stride import set_output_stride
from ..segmenter import Segmenter
from .architecture import BUILDERS, SAME_TENSORS, Architecture, architecture_of
from .description import preprocess_state
from .files import NETWORK
from .safetensors_format import write_safetensors

LAYOUTS = ("atrousx", "torchvision")
SUFFIXES = (".safetensors", ".pth", ".pt")
OUTPUT_STRIDES = (8, 16, 32, 64, 128, 256)


def save_weights(
    model: Segmenter,
    file: str | os.PathLike[str],
    *,
    layout: Literal["atrousx", "torchvision"] = "atrousx",
) -> None:
    """Saves the weights of a DeepLab in a file that is whole or not there.

    With ``layout="atrousx"`` the file also describes the network: the builder's arguments, the
    output stride and the preprocessing. So ``from_weights(file)`` needs no options. The file has
    the model's own keys. A ``.pth`` file holds them under "model", beside "network".

    With ``layout="torchvision"`` the file holds what torchvision's ``deeplabv3_resnet50`` or
    ``deeplabv3_resnet101`` loads by ``load_state_dict``: the same keys and nothing else.

    Args:
        model: a model of :func:`deeplab_v1`, :func:`deeplab_v2`, :func:`deeplab_v3` or
            :func:`deeplab_v3plus`.
        file: its suffix decides the format: ``.safetensors``, or ``.pth`` or ``.pt`` for
            ``torch.save``. An existing file is replaced.
        layout: "atrousx" or "torchvision".

    Raises:
        TypeError: ``model`` is not a DeepLab of this package.
        ImportError: safetensors is not installed, which such a file needs.
        ValueError: the suffix or the layout is unknown; no builder makes this model; or torchvision
            has no such network.
        OSError, RuntimeError: the file cannot be written. An existing file stays as it was.

    Example:
        >>> import tempfile, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2, output_stride=8, width=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atrousx.models.save_weights(model, f"{folder}/weights.safetensors")
        ...     same = atrousx.models.from_weights(f"{folder}/weights.safetensors")
        >>> repr(same) == repr(model)
        True
    """
    path = Path(file)
    if not isinstance(model, Segmenter):
        raise TypeError(f"model must be a DeepLab of this package, got {type(model).__name__}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"file must end in {', '.join(SUFFIXES)}, got {path.name!r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be 'atrousx' or 'torchvision', got {layout!r}")
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    network = described(model)
    if layout == "torchvision":
        _check_torchvision(network)
    if path.suffix == ".safetensors":
        metadata = {"format": "pt", NETWORK: json.dumps(network)}
        write_atomically(path, partial(_write_safetensors, tensors, metadata))
    else:
        content = tensors if layout == "torchvision" else {"model": tensors, NETWORK: network}
        write_atomically(path, partial(torch.save, content))


def _write_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], file: Any) -> None:
    write_safetensors(file, tensors, metadata)


def _check_torchvision(network: Mapping[str, Any]) -> None:
    arguments = network["arguments"]
    fits = network["version"] == "v3" and arguments.get("layout") == "torchvision"
    if not fits or arguments.get("width", 1) != 1:
        told = Architecture(network["version"], dict(arguments))
        raise ValueError(
            "torchvision's networks are those of deeplab_v3(layout='torchvision') at width 1, "
            f"the model is {told}"
        )


def described(model: Segmenter) -> dict[str, Any]:
    """Returns the description of a model: what its builder makes is compared with it.

    Raises:
        ValueError: no builder makes this model.
    """
    told = architecture_of(model.state_dict())
    candidates = [] if told is None else list(_candidates(model, told))
    like: dict[str, Any] = {}
    # A model that its builder makes is described so, not as one that was changed afterwards.
    for at_strides in (_as_built, _at_other_strides):
        for version, arguments in candidates:
            for stride, built in at_strides(version, arguments):
                if _geometry(built) != _geometry(model):
                    continue
                network: dict[str, Any] = {"version": version, "arguments": arguments}
                network["preprocess"] = preprocess_state(model.preprocess)
                network |= {} if stride is None else {"output_stride": stride}
                # Layouts that differ in dropout alone compute the same in inference.
                if _dropout(built) == _dropout(model):
                    return network
                like = like or network
    if like:
        return like
    raise ValueError(
        "no builder of this package makes this model, so a file cannot describe it: "
        "save its state_dict() with torch.save"
    )


Candidate = tuple[str, dict[str, Any]]


def _candidates(model: Segmenter, told: Architecture) -> Iterator[Candidate]:
    """Yields arguments of the builder that the model may have been built with."""
    arguments = dict(told.arguments)
    if told.version == "v1":
        arguments["pooling"] = "3x3" if model.align_corners else "2x2"
    if told.version == "v2":
        arguments["multi_scale"] = bool(getattr(model, "scales", ()))
    if getattr(model, "aux_classifier", None) is not None:
        arguments["aux"] = True
    name, values = told.choice or ("", ())
    choices: list[dict[str, Any]] = [{name: value} for value in values] or [{}]
    if told.version == "v3" and told.arguments.get("layout") in SAME_TENSORS:
        choices = [{"layout": layout} for layout in SAME_TENSORS]
    for choice in choices:
        for more in _strides_and_grids(model, told):
            yield told.version, arguments | choice | more


def _strides_and_grids(model: Segmenter, told: Architecture) -> Iterator[dict[str, Any]]:
    """Yields output strides and multi-grids, where the builder takes them."""
    parameters = inspect.signature(BUILDERS[told.version]).parameters
    strides: Sequence[int | None] = OUTPUT_STRIDES if "output_stride" in parameters else (None,)
    backbone = getattr(model, "backbone", None)
    has_grid = isinstance(backbone, ResNet) and told.arguments.get("layout") == "paper"
    # The default comes first.
    for grid in (None, *(_grids(cast(ResNet, backbone)) if has_grid else ())):
        for stride in strides:
            given = {"output_stride": stride, "multi_grid": grid}
            yield {name: value for name, value in given.items() if value is not None}


def _grids(backbone: ResNet) -> list[tuple[int, ...]]:
    """Returns the multi-grids that the rates of the fourth block may come from."""
    rates = [int(str(unit.rate)) for unit in backbone.stages()[3]]
    return [tuple(r // base for r in rates) for base in (1, 2, 4) if min(rates) >= base]


def _as_built(version: str, arguments: dict[str, Any]) -> Iterator[tuple[int | None, Segmenter]]:
    """Yields what a builder makes, without values."""
    try:
        with torch.device("meta"):
            built = BUILDERS[version](**arguments)
    except ValueError:
        # Its blocks do not reach this output stride.
        return
    yield None, built


def _at_other_strides(
    version: str, arguments: dict[str, Any]
) -> Iterator[tuple[int | None, Segmenter]]:
    """Yields what ``set_output_stride`` makes of a v3 or v3+, and the stride."""
    for _, built in _as_built(version, arguments):
        if not isinstance(built, (DeepLabV3, DeepLabV3Plus)):
            return
        for stride in OUTPUT_STRIDES:
            with contextlib.suppress(ValueError):
                yield stride, set_output_stride(copy.deepcopy(built), stride)


def _geometry(model: Segmenter) -> list[object]:
    """Returns what the weights do not tell of a model: strides, rates and poolings."""
    found: list[object] = [model.align_corners, getattr(model, "scales", ())]
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            found.append((name, module.kernel_size, module.stride, module.dilation))
    return found


def _dropout(model: Segmenter) -> list[float]:
    return [m.p for m in model.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]
