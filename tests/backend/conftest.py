"""Fixtures of the choices' tests: each begins as a new process would."""

from __future__ import annotations

import pytest

import atrousx
from atrousx.backend import measure as measuring


@pytest.fixture(autouse=True)
def _restored():
    before = atrousx.get_backend()
    measuring.forget()
    yield
    measuring.forget()
    atrousx.set_backend(before)


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a call by name; measured are those, not the machine's."""
    seconds = {"native": 1.0, "torch": 1.0}
    monkeypatch.setattr(
        "atrousx.backend.trial.faster",
        lambda native, by_torch, like: (seconds["native"], seconds["torch"]),
    )
    return seconds
