"""Each example runs on small input, does what it says, and stays under 60 lines."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from atrousx import data
from tests.models import torchvision_reference as reference

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photo(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(256, size=(33, 41, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def changed_share(printed):
    return float(re.search(r"changed ([\d.]+)% of the pixels", printed)[1])


def test_segment_and_refine_reads_weights_and_writes_two_pictures(photo, tmp_path, capsys):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(atrousx.models.deeplab_v3(num_classes=3).state_dict(), weights)
    out = tmp_path / "results"
    arguments = [str(photo), "--weights", str(weights), "--out", str(out)]
    example("segment_and_refine").main(arguments)
    printed = capsys.readouterr().out
    assert "random" not in printed
    before, after = (data.read_image(out / f"photo_{name}_crf.png") for name in ("before", "after"))
    assert before.shape == after.shape == (33, 41, 3)
    assert (before != after).any() == (changed_share(printed) > 0)


def test_segment_and_refine_says_that_random_weights_mean_nothing(photo, tmp_path, capsys):
    example("segment_and_refine").main([str(photo), "--out", str(tmp_path / "results")])
    assert "its labels mean nothing" in capsys.readouterr().out


def test_the_crf_and_its_network_learn_together():
    start = example("train_crf_rnn").main(["--steps", "1"])
    alone, refined = example("train_crf_rnn").main(["--steps", "40"])
    assert refined > max(start[1], alone) + 0.05
    assert refined > 0.95


def test_the_fused_loss_trains():
    losses = example("fused_loss").main(["--steps", "15"])
    assert len(losses) == 15
    assert losses[-1] < 0.2 * losses[0]


def test_dense_features_hold_the_classifiers():
    reference.segmentation()  # timm imports torchvision
    pytest.importorskip("timm")
    arguments = ["--network", "resnet18", "--size", "64", "--output-stride", "8"]
    features, coarse = example("dense_timm_features").main(arguments)
    assert features.shape[-2:] == (8, 8)
    assert coarse.shape[-2:] == (2, 2)
    torch.testing.assert_close(features[..., ::4, ::4], coarse, rtol=1e-3, atol=1e-3)


def test_without_timm_its_example_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match="needs timm: pip install timm"):
        example("dense_timm_features").main([])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_is_short(script):
    assert len(script.read_text().splitlines()) < 60


def test_there_are_four():
    assert len(SCRIPTS) == 4
