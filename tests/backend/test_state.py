"""Choices in checkpoints and on other ranks: once made, kept for the run."""

from __future__ import annotations

import io

import pytest
import torch
import torch.multiprocessing

import atrousx
from atrousx.backend import broadcast, load_state_dict, passes, state_dict
from atrousx.backend import measure as measuring
from atrousx.ops import atrous_conv2d

X, W = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)


def convolve(dilation=2):
    return atrous_conv2d(X, W, padding=dilation, dilation=dilation, backend="measure")


def native():
    return [choice.native for _, choice in measuring.table]


def test_a_resumed_run_computes_as_before(clock):
    clock.update(native=9.0)
    before = convolve()
    file = io.BytesIO()
    torch.save({"model": {}, "atrousx": state_dict()}, file)
    file.seek(0)
    measuring.forget()
    clock.update(native=0.1)
    load_state_dict(torch.load(file, weights_only=True)["atrousx"])
    assert torch.equal(convolve(), before)
    assert native() == [False]
    assert [choice.source for _, choice in measuring.table] == ["loaded"]
    assert state_dict()["choices"].keys()


def test_loading_replaces_what_was_decided(clock):
    convolve()
    saved = state_dict()
    measuring.forget()
    clock.update(native=9.0)
    convolve()
    assert native() == [False]
    load_state_dict(saved)
    convolve()
    assert native() == [True]


def test_a_choice_of_another_build_is_compared_once_more(clock, monkeypatch):
    clock.update(native=0.5)
    convolve()
    saved = {**state_dict(), "build": "another"}
    measuring.forget()
    load_state_dict(saved)
    clock.update(native=9.0)
    convolve()
    assert native() == [True]
    measuring.forget()
    load_state_dict(saved)
    right = passes._forward
    monkeypatch.setattr(passes, "_forward", lambda *args: right(*args) + 1)
    with pytest.warns(RuntimeWarning, match="differ by"):
        convolve()
    assert native() == [False]


def test_a_choice_of_another_build_runs_nowhere_before_it_is_compared(clock):
    convolve()
    load_state_dict({**state_dict(), "build": "another"})
    torch.use_deterministic_algorithms(True)
    try:
        w = torch.full_like(W, torch.inf)
        y = atrous_conv2d(X.abs(), w, padding=2, dilation=2, backend="measure")
    finally:
        torch.use_deterministic_algorithms(False)
    assert y.isnan().any()  # PyTorch's multiplies padding


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, ValueError),
        ({"choices": []}, ValueError),
        ({"choices": {"{}": [True, True, 1.0, 1.0, 0.0]}}, ValueError),
        (None, TypeError),
    ],
)
def test_what_is_no_state_is_refused_as_a_whole(clock, change, error):
    clock.update(native=9.0)
    convolve()
    state = None if change is None else {**state_dict(), **change}
    with pytest.raises(error, match="state must be"):
        load_state_dict(state)
    assert native() == [False]


def test_broadcast_needs_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        broadcast()


def _rank(rank, rendezvous, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    measuring.forget()
    # Ranks whose clocks say opposite things.
    times = (1.0, 9.0) if rank == 0 else (9.0, 1.0)
    atrousx.backend.trial.faster = lambda *_: times
    convolve()
    before = native()
    broadcast(src=1)
    after = native()
    result = convolve()
    torch.save((before, after, native(), result), f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_all_ranks_compute_as_one_does(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    (before_0, after_0, kept_0, _), (before_1, after_1, kept_1, _) = (
        torch.load(tmp_path / str(rank)) for rank in range(2)
    )
    assert (before_0, before_1) == ([True], [False])
    assert after_0 == after_1 == kept_0 == kept_1 == [False]
