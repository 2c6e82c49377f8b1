"""What ``atrousx info FILE`` says of a file with weights."""

from __future__ import annotations

import json
from collections import Counter

from ..models import Preprocess
from ..models.backbones.resnet import UNITS
from ..models.backbones.xception import FORMS
from ..models.checkpoints.architecture import BUILDERS, Architecture, architecture_of
from ..models.checkpoints.description import check_against_tensors
from ..models.checkpoints.files import StoredWeights, read_weights
from ..models.checkpoints.layouts import Layout, recognise
from ..models.checkpoints.load import PREPROCESS
from ..models.checkpoints.near_misses import near_miss
from ..models.checkpoints.words import abridged

# Values that batch normalisation counts or averages, which training does not fit.
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
# A width at which a network is built in no time.
NARROW = 0.01


def weights_rows(file: str) -> dict[str, str]:
    """Returns what a file with weights is, in words by name.

    Raises:
        OSError, ValueError: the file cannot be read, or its keys are those of no known network.
    """
    weights = read_weights(file)
    layout, told = recognise(weights), architecture_of(weights)
    suggestion = near_miss(weights)
    if layout is None or (told is None and suggestion):
        keys = abridged(tuple(weights))
        raise ValueError(f"the weights are not those of any layout known here: {keys}{suggestion}")
    if told is not None and weights.network is not None:
        check_against_tensors(told, weights)
    rows = {"file": f"{file}, {weights.kind}", "layout": layout.name}
    rows |= _network_rows(weights, told, layout)
    rows |= _tensor_rows(weights)
    rows |= _wrapping_rows(weights)
    return rows | _python_rows(json.dumps(file, ensure_ascii=False), weights, told, layout)


def _network_rows(
    weights: StoredWeights, told: Architecture | None, layout: Layout
) -> dict[str, str]:
    if told is None:
        # The backbones of ImageNet, and the initialisation of a port.
        kind = "a backbone" if layout.needed[0].startswith("backbone") else "none known here"
        rows = {"network": f"{kind}, not a whole DeepLab"}
        if layout.name in PREPROCESS:
            look = _look(PREPROCESS[layout.name]())
            rows["input"] = f"{look}, as ImageNet's weights expect"
        return rows
    by = "keys and shapes" if weights.network is None else "the file's description"
    rows = {"network": f"DeepLab {told.version}, told by {by}"}
    if told.choice is not None:
        name, values = told.choice
        rows["open"] = f"{name}, which is {' or '.join(map(repr, values))}: the weights do not tell"
    rows["classes"] = str(told.arguments["num_classes"])
    if weights.network is not None:
        rows["input"] = f"{_look(Preprocess(**weights.network['preprocess']))}, as the file says"
    else:
        narrow = BUILDERS[told.version](**told.arguments | {"width": NARROW})
        rows["input"] = f"{_look(narrow.preprocess)}, the builder's default"
    return rows


def _xception(weights: StoredWeights) -> str:
    """Returns the Xception with the number of blocks of the weights."""
    blocks = {key.split(".")[1] for key in weights if key.startswith("blocks.")}
    return next((name for name, units in FORMS.items() if len(units) == len(blocks)), "xception65")


def _look(preprocess: Preprocess) -> str:
    def shown(values: list[float]) -> str:
        return ", ".join(f"{value:.6g}" for value in values)

    mean, std = (values.flatten().tolist() for values in (preprocess.mean, preprocess.std))
    order = "BGR" if preprocess.bgr else "RGB"
    divided = "" if all(value == 1 for value in std) else f", divided by ({shown(std)})"
    return f"{order} in 0..255, minus ({shown(mean)}){divided}"


def _tensor_rows(weights: StoredWeights) -> dict[str, str]:
    fitted = [value for key, value in weights.items() if not key.endswith(STATISTICS)]
    parameters = sum(value.numel() for value in fitted)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in fitted)
    return {
        "parameters": f"{parameters:,} in {len(fitted)} tensors",
        "dtype": ", ".join(
            name if len(dtypes) == 1 else f"{name} ({count})" for name, count in dtypes.items()
        ),
    }


def _wrapping_rows(weights: StoredWeights) -> dict[str, str]:
    found = weights.found
    parts = [f"under {'.'.join(found.path)!r}"] if found.path else []
    parts += [f"prefix {found.prefix!r}"] if found.prefix else []
    rows = {"wrapping": ", ".join(parts) or "none"}
    if found.is_average:
        rows["average"] = "these are averaged weights (EMA), the file has no others"
    elif found.has_average:
        rows["average"] = "the file has averaged weights (EMA), too: ema=True takes them"
    return rows | ({"ignored": abridged(found.ignored, 8)} if found.ignored else {})


def _python_rows(
    file: str, weights: StoredWeights, told: Architecture | None, layout: Layout
) -> dict[str, str]:
    """Returns the Python that builds the network and loads the file."""
    if told is not None:
        name, values = told.choice or ("", ())
        options = f", {name}={values[0]!r}" if name and told.version == "v1" else ""
        build = told._replace(arguments=told.arguments | ({name: values[0]} if name else {}))
        stride = None if weights.network is None else weights.network.get("output_stride")
        later = "" if stride is None else f", then set_output_stride(model, {stride})"
        return {
            "built by": f"atrousx.models.{build._replace(choice=None)}{later}",
            "loaded by": f"atrousx.models.from_weights({file}{options})",
        }
    depth = [n for n, u in UNITS.items() if f"layer3.{u[2] - 1}.conv1.weight" in weights]
    build_of = {"resnet": f"deeplab_v3(backbone={(depth or ['resnet50'])[-1]!r})"}
    build_of |= {"vgg16": "deeplab_v1()", "deeplab_v2_base": "deeplab_v2()"}
    build_of |= {
        name: f"deeplab_v3plus(backbone={backbone!r})"
        for name, backbone in (("xception", _xception(weights)), ("mobilenet_v2", "mobilenet_v2"))
    }
    rows = {"loaded by": f"atrousx.models.load_weights(model, {file})"}
    if layout.name in build_of:
        rows = {"built by": f"model = atrousx.models.{build_of[layout.name]}"} | rows
    return rows
