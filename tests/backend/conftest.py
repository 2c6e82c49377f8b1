"""Fixtures for the backend tests: each test starts with the state of a new process."""

from __future__ import annotations

import pytest

import atrousx
from atrousx.backend import measure as measuring
from atrousx.backend import passes
from atrousx.backend.geometry import FORWARD, GRAD_INPUT, GRAD_WEIGHT


@pytest.fixture(autouse=True)
def _restored():
    before = atrousx.get_backend()
    measuring.forget()
    yield
    measuring.forget()
    atrousx.set_backend(before)


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a call by implementation. They replace the measured times."""
    seconds = {"native": 1.0, "torch": 1.0}
    monkeypatch.setattr(
        "atrousx.backend.trial.faster",
        lambda native, by_torch, like: (seconds["native"], seconds["torch"]),
    )
    return seconds


@pytest.fixture
def used(monkeypatch):
    """Records the native passes that run, in order, trials included."""
    names = []

    def seen(name, function):
        def call(*args):
            names.append(name)
            return function(*args)

        return call

    for pass_, name in (
        (FORWARD, "convolve_natively"),
        (GRAD_INPUT, "gradient_of_input"),
        (GRAD_WEIGHT, "gradient_of_weight"),
    ):
        wrapped = seen(pass_, getattr(passes, name))
        monkeypatch.setattr(passes, name, wrapped)
        monkeypatch.setattr(f"atrousx.ops._measured_conv2d.{name}", wrapped)
    return names


@pytest.fixture
def measure():
    atrousx.set_backend("measure")
