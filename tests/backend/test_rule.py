"""The rule of "auto" on the CPU: properties that hold for all limits, and the files of limits."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from atrousx.backend import rule
from atrousx.backend.rule import Features, Limits, limits_of, line_of, torch_is_faster

SETS = sorted(file.stem for file in rule.FOLDER.glob("*.json"))
USES = (rule.TRAINS, rule.INFERS, rule.PACKED, rule.PACKED_RELU)
DTYPES, LAYOUTS = ("float32", "bfloat16"), ("contiguous", "channels_last")
COLUMNS = [f"{dtype} {layout}" for dtype, layout in itertools.product(DTYPES, LAYOUTS)]


def features(chance, **change):
    """Returns the features of a random convolution."""
    channels = chance.choice((1, 1, 8, 64, 128, 512, 2048))
    drawn = {
        "dtype": chance.choice((torch.float32, torch.bfloat16)),
        "channels_last": chance.random() < 0.5,
        "live": round(chance.uniform(0.3, 1), 3),
        "use": chance.choice(USES),
        "channels": channels,
        "outputs": chance.choice((8, 21, 64, 256)),
        "grouped": channels > 1 and chance.random() < 0.3,
        "multiplied": chance.random() < 0.2,
        "by_rows": chance.random() < 0.2,
        "strided": chance.random() < 0.2,
        "dilated": chance.random() < 0.5,
        "taps": chance.choice((4, 9, 25)),
    }
    return Features(**{**drawn, **change})


def many(**change):
    chance = random.Random(0)
    return [features(chance, **change) for _ in range(4000)]


def entries(table, depth):
    """Yields the limits of a table, each with the names that lead to it."""
    if not isinstance(table, dict):
        yield (), table
        return
    assert depth > 0
    for name, inner in table.items():
        for names, limit in entries(inner, depth - 1):
            yield (name, *names), limit


def test_the_sets_with_avx_have_limits():
    assert SETS == ["avx2", "avx512"]
    assert limits_of("portable") is None


@pytest.mark.parametrize("name", SETS)
def test_a_file_holds_limits_alone(name):
    limits = limits_of(name)
    for names, limit in entries(limits.torch_from, 3):
        assert limit is None or 0 <= limit <= 1
        assert set(names[1:2]) <= set(COLUMNS)
        assert set(names[2:]) <= set(USES)
    assert {"cpu", "threads", "torch", "atrousx", "date"} <= limits.measured.keys()
    assert limits.measured["threads"] > 0


def test_files_have_the_same_kinds_and_bounds():
    first, *others = map(limits_of, SETS)
    for other in others:
        assert other.torch_from.keys() == first.torch_from.keys()
        assert other.bounds == first.bounds


@pytest.mark.parametrize("name", SETS)
def test_every_convolution_has_a_line_and_every_kind_convolutions(name):
    limits = limits_of(name)
    lines = {line_of(f, limits.bounds) for f in many()}
    assert {kind for kind, _, _ in lines} == limits.torch_from.keys()
    for line in lines:
        rule.limit_at(limits, line)  # raises if a table lacks it


@pytest.mark.parametrize("name", SETS)
def test_with_less_padding_to_skip_pytorch_stays_the_faster_one(name):
    limits = limits_of(name)
    for less in many():
        more = less._replace(live=min(1, less.live + 0.2))
        assert torch_is_faster(more, limits) >= torch_is_faster(less, limits)


@pytest.mark.parametrize("feature", [f for f in Features._fields if f != "live"])
def test_every_feature_decides_something(feature):
    limits, chance = limits_of("avx512"), random.Random(1)
    assert any(
        torch_is_faster(f, limits)
        != torch_is_faster(f._replace(**{feature: getattr(features(chance), feature)}), limits)
        for f in many()
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes_without_measurements_stay_with_atrousx(name, dtype):
    assert not any(torch_is_faster(f, limits_of(name)) for f in many(dtype=dtype))


def test_a_number_stands_for_the_table_in_its_place():
    line = ("some channels", "float32 contiguous", rule.INFERS)
    for table in (0.5, {line[1]: 0.5}, {line[1]: {line[2]: 0.5}}):
        assert rule.limit_at(Limits({}, {}, {line[0]: table}), line) == 0.5
    assert rule.limit_at(Limits({}, {}, {line[0]: None}), line) is None
    with pytest.raises(KeyError):
        rule.limit_at(Limits({}, {}, {line[0]: {}}), line)


def test_at_the_limit_pytorch_computes():
    limits = limits_of("avx512")
    usual = features(random.Random(0), dtype=torch.float32, channels_last=False, channels=256)
    usual = usual._replace(outputs=256, grouped=False, use=rule.INFERS)
    limit = rule.limit_at(limits, line_of(usual, limits.bounds))
    assert torch_is_faster(usual._replace(live=limit), limits)
    assert not torch_is_faster(usual._replace(live=limit - 1e-3), limits)
