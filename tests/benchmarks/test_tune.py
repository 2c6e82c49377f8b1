"""The limits of "auto" are fitted to measurements, and the package's limits to its own data."""

from __future__ import annotations

import csv
import importlib
import json
import math
import random
from pathlib import Path

import pytest

from atrousx.backend import rule

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
USES = (rule.TRAINS, rule.INFERS, rule.PACKED, rule.PACKED_RELU)


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tune")


def faster(live, by):
    """Returns a geometry where atrousx's kernels are ``by`` times as fast as PyTorch."""
    return live, math.log(by)


def test_a_limit_lies_between_those_that_differ(tune):
    points = [faster(0.9, 0.5), faster(0.4, 2), faster(0.6, 1.5), faster(0.8, 0.8)]
    assert tune.fit_line(points) == 0.7
    assert tune.fit_line([*points, faster(0.3, 0.9)]) == 0.7  # this one loses little
    assert tune.fit_line([*points, faster(0.3, 0.01)]) == tune.ALWAYS


def test_a_limit_does_not_part_geometries_of_one_share(tune):
    assert tune.fit_line([faster(0.5, 0.5), faster(0.5, 4)]) == tune.NEVER
    assert tune.fit_line([faster(0.5, 0.1), faster(0.5, 4)]) == tune.ALWAYS


def test_pytorch_must_win_by_five_percent(tune):
    assert tune.fit_line([faster(0.5, 0.96)]) == tune.NEVER
    assert tune.fit_line([faster(0.5, 0.9)]) == tune.ALWAYS
    assert tune.fit_line([]) == tune.NEVER


def row(line, live, native, by_torch):
    kind, columns, use = line
    head = {"machine": "a CPU", "threads": "2", "torch": "2.13.0", "atrousx": "0.1.0"}
    numbers = {"live": str(live), "native_ms": str(native), "torch_ms": str(by_torch)}
    return {**head, "date": "2026-11-30", "kind": kind, "columns": columns, "use": use, **numbers}


def test_lines_of_few_measurements_keep_their_limit(tune):
    begin = rule.limits_of("avx512")
    line = ("some channels", "float32 contiguous", "infers")
    rows = [row(line, live, 2.0, 1.0) for live in (0.4, 0.6, 0.9)]
    assert rule.limit_at(tune.fit(rows[:2], begin), line) == rule.limit_at(begin, line)
    fitted = tune.fit(rows, begin)
    assert rule.limit_at(fitted, line) == 0
    assert fitted.measured["geometries"] == 3
    assert fitted.bounds == begin.bounds
    other = ("many channels", "float32 contiguous", "infers")
    assert rule.limit_at(fitted, other) == rule.limit_at(begin, other)


def test_random_convolutions_reach_every_kind(tune):
    limits = rule.limits_of("avx512")
    chance, kinds = random.Random(0), set()
    for _ in range(3000):
        conv = tune.draw(chance)
        dtype, layout = chance.choice([*tune.DTYPES]), chance.choice([*tune.FORMATS])
        found = tune.line_of(conv, layout, dtype, chance.choice(USES), limits.bounds)
        if found is not None:
            kinds.add(found[0][0])
            assert 0 < found[1] <= 1
    assert kinds == limits.torch_from.keys()


@pytest.mark.parametrize("use", USES)
def test_both_compute_the_same(tune, use):
    conv = tune.Conv(channels=16, outputs=16, kernel=3, dilation=2, extent=9, groups=16)
    calls = tune.make_calls(conv, "channels_last", "float32", use)
    results = [calls[name]() for name in ("native", "torch")]
    native, by_torch = (r if isinstance(r, tuple) else (r,) for r in results)
    for a, b in zip(native, by_torch, strict=True):
        assert (a - b).abs().max() < 1e-4


def test_the_limits_of_avx2_are_those_of_their_measurements(tune):
    (file,) = (BENCHMARKS / "results").glob("*/limits-avx2.csv")
    with file.open(newline="") as rows:
        fitted = tune.fit(csv.DictReader(rows), rule.limits_of("avx512"))
    assert fitted._asdict() == json.loads((rule.FOLDER / "avx2.json").read_text())
