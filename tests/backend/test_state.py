"""Choices in checkpoints and on other ranks: a choice that was made is kept for the run."""

from __future__ import annotations

import io
import os

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


def run(size, weight=W):
    """Whether atrousx's kernels computed a layer at this size. PyTorch's would multiply padding."""
    x = torch.ones(1, 4, size, size)
    y = atrous_conv2d(x, torch.full_like(weight, torch.inf), padding=2, dilation=2)
    return not y.isnan().any()


SIZES = (8, 16, 32, 64)
FIFTH = 20


def measured_as(clock, native, sizes):
    clock.update(native=0.5 if native else 9.0)
    return [run(size) for size in sizes]


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
    assert y.isnan().any()  # PyTorch's convolution multiplies padding


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 1}, ValueError),
        ({"choices": []}, ValueError),
        ({"choices": {"{}": [True, True, 1.0, 1.0, 0.0, "measured", True]}}, ValueError),
        ({"choices": {"{}": []}}, ValueError),
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


def another_process(clock, native, sizes):
    """Another process measures sizes into the cache. This process has not read them yet."""
    measuring.forget()
    measured_as(clock, native, sizes)
    measuring._write()
    measuring.forget()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("ATROUSX_CACHE", str(tmp_path / "choices.json"))
    atrousx.set_backend("measure")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("reads_first", [False, True])
def test_what_the_nearest_size_decided_is_resumed_whatever_the_cache_holds(clock, reads_first):
    assert measured_as(clock, False, SIZES) == [False] * 4
    assert not run(FIFTH)
    saved = state_dict()
    assert sorted(entry[5] for entry in saved["choices"].values()) == ["measured"] * 4 + ["nearest"]
    another_process(clock, True, [FIFTH, 21, 60])
    if reads_first:
        assert run(FIFTH)
    load_state_dict(saved)
    for size in (*SIZES, FIFTH, 21, 60):
        assert not run(size), size
    assert {choice.source for _, choice in measuring.table} == {"loaded", "nearest"}


@pytest.mark.usefixtures("cached")
def test_a_decision_by_the_nearest_is_not_cached_and_counts_for_nothing(clock):
    measured_as(clock, True, [*SIZES, FIFTH])
    measuring._write()
    measuring.forget()
    run(8)
    assert len(list(measuring.table)) == len(SIZES)
    measuring.forget()
    saved = state_dict()
    measured_as(clock, True, SIZES[:3])
    assert len(list(measuring.table)) == 4  # from the cache
    saved = state_dict()
    saved["choices"] = {
        text: [*entry[:5], "nearest", True] if i else entry
        for i, (text, entry) in enumerate(saved["choices"].items())
    }
    load_state_dict(saved)
    clock.update(native=9.0)
    assert not run(FIFTH)  # it is measured: one measured size is not enough to decide
    assert [c.source for _, c in measuring.table] == ["loaded"] + ["nearest"] * 3 + ["measured"]


@pytest.mark.usefixtures("cached")
def test_sizes_for_which_memory_ran_out_are_resumed_as_such(clock):
    measured_as(clock, True, SIZES)
    geometry, choice = next(iter(measuring.table))
    far = geometry._replace(input=(1, 4, 500, 500))
    measuring.keep(far, choice._replace(native=False, agrees=False, source="no memory"))
    assert run(FIFTH)
    load_state_dict(state_dict())
    assert run(FIFTH)
    assert run(FIFTH + 1)


def test_what_another_build_chose_stays_unproven_in_a_second_checkpoint(clock):
    convolve()
    load_state_dict({**state_dict(), "build": "another"})
    load_state_dict(state_dict())
    assert [choice.verified for _, choice in measuring.table] == [False]


def test_broadcast_needs_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        broadcast()


def _rank(rank, rendezvous, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    measuring.forget()
    # The clocks of the two ranks give opposite results.
    times = (1.0, 9.0) if rank == 0 else (9.0, 1.0)
    atrousx.backend.trial.faster = lambda *_: times
    convolve()
    before = native()
    broadcast(src=1)
    after = native()
    result = convolve()
    torch.save((before, after, native(), result), f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def _rank_with_a_cache(rank, rendezvous, results):
    """Rank 0 has measured four sizes. Rank 1's cache has others, with the opposite result."""
    torch.set_num_threads(1)
    os.environ["ATROUSX_CACHE"] = f"{results}/cache {rank}"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    atrousx.set_backend("measure")
    seconds = {"native": 9.0 if rank == 0 else 0.5}
    atrousx.backend.trial.faster = lambda *_: (seconds["native"], 1.0)
    if rank == 0:
        found = [run(size) for size in (*SIZES, FIFTH)]
    else:
        found = [run(size) for size in (FIFTH, 21, 60)]
        measuring._write()
        measuring.forget()
    broadcast(src=0)
    found += [run(size) for size in (*SIZES, FIFTH, 21, 60)]
    torch.save(found, f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_of_unequal_caches_agree(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.spawn(_rank_with_a_cache, arguments, nprocs=2)
    own, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert own == [False] * 12
    assert other == [True] * 3 + [False] * 7


def test_all_ranks_compute_as_one_does(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    (before_0, after_0, kept_0, _), (before_1, after_1, kept_1, _) = (
        torch.load(tmp_path / str(rank)) for rank in range(2)
    )
    assert (before_0, before_1) == ([True], [False])
    assert after_0 == after_1 == kept_0 == kept_1 == [False]
