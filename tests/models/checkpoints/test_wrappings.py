"""Weights under any names and prefixes, in any layout and dtype, load into the same model."""

from functools import cache

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from atrousx.models import (
    deeplab_v1,
    deeplab_v2,
    deeplab_v3,
    deeplab_v3plus,
    from_weights,
    load_weights,
)
from atrousx.models.checkpoints.files import read_weights
from atrousx.models.checkpoints.safetensors_format import write_safetensors
from atrousx.models.checkpoints.unwrap import AVERAGE, PLAIN, PREFIXES
from tests.models.checkpoints.published import port_with_base, port_with_scale
from tests.optional import given, settings, st

NARROW = 0.02
# At this width a unit's input and result differ in their channels, as at width 1.
WIDE = 0.125


def bare(model):
    """Returns a state_dict whose backbone's keys lack "backbone."."""
    return {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}


def doubled_classifier(model):
    """Returns a state_dict as a port of torchvision's network has it."""
    state = model.state_dict().items()
    return {key.replace("classifier.", "classifier.classifier."): value for key, value in state}


def own(model):
    return model.state_dict()


def torchvisions():
    return deeplab_v3(3, layout="torchvision", width=NARROW)


def second(width=NARROW):
    return deeplab_v2(3, width=width)


LAYOUTS = {
    "v1": (lambda: deeplab_v1(3, multi_scale_features=True, width=NARROW), own),
    "v1 bare": (lambda: deeplab_v1(3, width=NARROW), bare),
    "v2": (second, own),
    "v2 bare": (second, bare),
    "v2 base": (lambda: second(WIDE), port_with_base),
    "v2 base bare": (lambda: second(WIDE), lambda model: port_with_base(model, "")),
    "v2 scale": (second, port_with_scale),
    "v2 scale bare": (second, lambda model: port_with_scale(model, "")),
    "v2 vgg": (lambda: deeplab_v2(3, "vgg16", "large_fov", width=NARROW), own),
    "v2 vgg bare": (lambda: deeplab_v2(3, "vgg16", "large_fov", width=NARROW), bare),
    "v3": (lambda: deeplab_v3(3, width=NARROW), own),
    "v3 bare": (lambda: deeplab_v3(3, width=NARROW), bare),
    "cascade": (lambda: deeplab_v3(3, head="cascade", blocks=5, width=NARROW), own),
    "cascade bare": (lambda: deeplab_v3(3, head="cascade", blocks=5, width=NARROW), bare),
    "torchvision": (torchvisions, own),
    "torchvision bare": (torchvisions, bare),
    "torchvision doubled": (torchvisions, doubled_classifier),
    "v3+": (lambda: deeplab_v3plus(3, width=NARROW), own),
    "v3+ bare": (lambda: deeplab_v3plus(3, width=NARROW), bare),
    "v3+ xception": (lambda: deeplab_v3plus(3, "xception65", width=NARROW), own),
    "v3+ xception bare": (lambda: deeplab_v3plus(3, "xception65", width=NARROW), bare),
    "v3+ mobile bare": (lambda: deeplab_v3plus(3, "mobilenet_v2", width=NARROW), bare),
    "v3+ smp": (lambda: deeplab_v3plus(3, layout="smp", width=NARROW), own),
}


@cache
def trained(name):
    """Returns a model whose values float16 and bfloat16 have, too, and its published weights."""
    build, layout = LAYOUTS[name]
    model = build()
    for value in model.state_dict().values():
        value.copy_(torch.randint(-8, 8, value.shape) / 4)
    return model, layout(model)


def assert_same(model, expected):
    assert repr(model) == repr(expected)
    for key, value in expected.state_dict().items():
        # Some published weights have no counters.
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[key], value), key


def wrapped(content, names, beside):
    for name in names:
        content = {**beside, name: content}
    return content


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_under_names_and_prefixes(name, tmp_path):
    model, state = trained(name)
    state = {f"module._orig_mod.model.{key}": value for key, value in state.items()}
    content = wrapped(state, ("model_state", "net"), {"epoch": 3, "loss": torch.ones(())})
    torch.save(content, tmp_path / "c.pth")
    assert_same(from_weights(tmp_path / "c.pth"), model)
    found = read_weights(tmp_path / "c.pth").found
    assert found.path == ("net", "model_state")
    assert found.prefix == "module._orig_mod.model."
    assert found.ignored == ("epoch", "loss", "epoch", "loss")


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    names=st.lists(st.sampled_from((*PLAIN, *AVERAGE)), max_size=3),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
    form=st.sampled_from(("zip", "old", "safetensors")),
    has_entries=st.booleans(),
)
def test_any_wrapping_loads_to_the_same_model(
    name, names, prefixes, dtype, form, has_entries, tmp_path_factory
):
    model, state = trained(name)
    floating = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    keyed = {f"{''.join(prefixes)}{key}": value for key, value in floating.items()}
    path = tmp_path_factory.mktemp("any") / "c"
    if form == "safetensors":
        with open(path, "wb") as file:
            write_safetensors(file, keyed, {})
    else:
        entries = {"epoch": 3, "_metadata": {"": {"version": 1}}} if has_entries else {}
        content = wrapped(keyed | entries, names, {"optimizer": {"state": {0: torch.ones(1)}}})
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert_same(from_weights(path), model)


# --- averages


def plain_and_average():
    model, _ = trained("v1")
    state = model.state_dict()
    return state, {key: value + 1 for key, value in state.items()}


def averaged(average):
    """Returns the state_dict of PyTorch's AveragedModel."""
    model = AveragedModel(LAYOUTS["v1"][0]())
    model.module.load_state_dict(average)
    return model.state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda plain, ema: {"model": plain, "model_ema": averaged(ema)},
        lambda plain, ema: {"state_dict_ema": ema, "state_dict": plain},
        lambda plain, ema: {"ema": {"decay": 0.9, "shadow": ema}, "model": {"state_dict": plain}},
        lambda plain, ema: {
            **{f"model.{key}": value for key, value in plain.items()},
            **{f"ema_model.{key}": value for key, value in ema.items()},
            "step": torch.tensor(3),
        },
        lambda plain, ema: {**plain, "ema": ema},
    ],
    ids=["AveragedModel", "timm", "shadow", "prefixes", "inside"],
)
def test_the_average_is_taken_where_it_is_asked_for(wrap):
    plain, average = plain_and_average()
    content = wrap(plain, average)
    for ema, expected in ((False, plain), (True, average)):
        model = from_weights(content, ema=ema)
        assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
        load_weights(model, content, ema=not ema)
        assert not torch.equal(model.classifier[0].bias, expected["classifier.0.bias"])
    assert read_weights(content).found.has_average


def test_an_average_alone_is_taken_and_said():
    _, average = plain_and_average()
    found = read_weights({"ema": average}).found
    assert found.is_average
    assert found.path == ("ema",)


def test_no_average_where_it_is_asked_for(tmp_path):
    plain, _ = plain_and_average()
    torch.save({"net": plain, "epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"c\.pth holds no average \(EMA\) of the weights, but net"
    ):
        from_weights(tmp_path / "c.pth", ema=True)
    with pytest.raises(ValueError, match=r"no average .*, but the weights alone"):
        load_weights(trained("v1")[0], plain, ema=True)


# --- what lies beside, and what no layer takes


def test_losses_and_parts_that_were_compiled():
    model, state = trained("v3")
    state = {k.replace("layer4.", "layer4._orig_mod."): v for k, v in state.items()}
    state = {f"model.{key}": value for key, value in state.items()}
    state |= {"criterion.weight": torch.ones(3), 7: torch.ones(1)}
    assert_same(from_weights(state), model)
    assert set(read_weights(state).found.ignored) == {"criterion.weight", "7"}


def test_one_dictionary_of_an_unknown_name():
    model, state = trained("v1")
    assert_same(from_weights({"student": state, "loss": torch.ones(())}), model)
    with pytest.raises(ValueError, match=r"tensors by name, got .* at 'student', .*teacher"):
        from_weights({"student": state, "teacher": dict(state)})


def test_what_profilers_left():
    model, state = trained("v1")
    assert_same(from_weights(state | {"backbone.total_ops": torch.zeros(1)}), model)


def test_a_checkpoint_of_a_gpu(tmp_path, monkeypatch):
    model, state = trained("v1")
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    for zipped in (True, False):
        torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        assert b"cuda:7" in (tmp_path / "c.pth").read_bytes()
        assert_same(from_weights(tmp_path / "c.pth"), model)


def test_other_heads_are_left_over():
    model, state = trained("v1")
    extra = {"aux_classifier.0.weight": torch.ones(1), "auxlayer.conv.weight": torch.ones(1)}
    assert load_weights(model, state | extra).left_over == tuple(extra)
    with pytest.raises(ValueError, match=r"no place for decoder\.weight"):
        load_weights(model, state | {"decoder.weight": torch.ones(1)})


def test_a_dictionary_that_contains_itself():
    content = {"epoch": 3}
    content["model"] = content["ema"] = content
    with pytest.raises(ValueError, match="must hold tensors by name, got int at 'epoch', dict at"):
        read_weights(content)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda value: value.to(torch.complex64), "complex"),
        (torch.Tensor.to_sparse, "sparse"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized"),
        (lambda value: torch.nested.nested_tensor([value]), "nested"),
        (lambda value: value.to("meta"), "meta"),
    ],
)
# PyTorch warns of its own prototypes and of deprecated types.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_other_tensors_are_refused_and_nothing_is_loaded(change, kind):
    _, state = trained("v1")
    model = LAYOUTS["v1"][0]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    odd = state | {"classifier.6.weight": change(state["classifier.6.weight"])}
    with pytest.raises(ValueError, match=rf"classifier\.6\.weight.*{kind}|{kind}.*6\.weight"):
        load_weights(model, odd)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("conv1.weight", "layer1.0.conv2.weight", "layer4.1.conv2.weight"), "resnet18 or"),
        (("decode_head.conv_seg.weight", "backbone.stem.0.weight"), "mmsegmentation"),
        (("model.segformer.encoder.patch_embeddings.0.proj.weight",), "HuggingFace's SegFormer"),
        (("encoder.conv1.weight", "segmentation_head.0.weight"), "segmentation_models_pytorch"),
    ],
)
def test_near_misses_are_named(keys, name):
    model, _ = trained("v1")
    state = {key: torch.ones(1) for key in keys}
    for load in (lambda: load_weights(model, state), lambda: from_weights(state)):
        with pytest.raises(ValueError, match=rf"; these look like the keys of .*{name}"):
            load()


def test_the_fcn_of_torchvision_is_named():
    model, state = trained("torchvision")
    keys = ("0.weight", *(f"1.{n}" for n in ("weight", "bias")), "4.weight", "4.bias")
    fcn = {key: value for key, value in state.items() if key.startswith("backbone.")}
    fcn |= {f"classifier.{key}": torch.ones(3, 8, 1, 1) for key in keys}
    for load in (lambda: load_weights(model, fcn), lambda: from_weights(fcn)):
        with pytest.raises(ValueError, match="look like the keys of torchvision's fcn_resnet50"):
            load()
