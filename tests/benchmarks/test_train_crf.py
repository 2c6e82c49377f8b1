"""The training demo: fitting the CRF's parameters lowers the loss and raises the accuracy."""

import importlib
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "benchmarks" / "demo"


def test_crf_learns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(DEMO)
    train_crf = importlib.import_module("train_crf")
    history = train_crf.fit(steps=8, size=(18, 24))
    before, after = history["accuracy"]
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert after > before + 0.03
