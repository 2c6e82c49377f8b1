"""The tables and pictures of the page on reproducing the papers say what was measured."""

import csv
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import atrousx

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def docs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "docs")
    names = ("measurements", "reproduction_tables", "reproduction.tables", "reproduction.budgets")
    found = {name.split(".")[-1]: importlib.import_module(name) for name in names}
    monkeypatch.setattr(found["measurements"], "RESULTS", tmp_path)
    return SimpleNamespace(**found)


def row(variant, view, mean, date="2026-01-02", error="0.50"):
    return {
        "date": date,
        "variant": variant,
        "view": view,
        "mean_iou": mean,
        "standard_error": error,
        "parameters": "1234",
        "images_per_s": "5.5",
    }


def write(folder: Path, machine: str, table: str, rows) -> None:
    (folder / machine).mkdir(exist_ok=True)
    with (folder / machine / f"reproduction_{table}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def views(variants):
    for variant in variants:
        for view in variant.views:
            yield variant.name, view.name
            if view.crf:
                yield variant.name, f"{view.name}_crf"


@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_a_table_shows_every_variant_and_view(docs, tmp_path, name):
    cases = list(views(docs.tables.TABLES[name](docs.budgets.CORES)))
    values = [f"{10 + index}.25" for index in range(len(cases))]
    write(tmp_path, "one", name, [row(*case, v) for case, v in zip(cases, values, strict=True)])
    text = getattr(docs.reproduction_tables, name)()
    for value in values:
        assert text.count(f"{value} ± 0.50") == 1


def test_the_newest_measurement_counts(docs, tmp_path):
    write(tmp_path, "old", "v1", [row("a", "single", "1.00", "2026-01-01")])
    write(tmp_path, "new", "v1", [row("a", "single", "2.00", "2026-02-01", error="")])
    [found] = docs.reproduction_tables.rows("v1")
    assert docs.reproduction_tables.iou(found) == "2.00"


def test_a_section_is_there_if_its_table_was_measured(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs.reproduction_tables, "FOLDER", tmp_path / "made")
    cases = views(docs.tables.TABLES["v2"](docs.budgets.CORES))
    write(tmp_path, "one", "v2", [row(*case, "1.25") for case in cases])
    docs.reproduction_tables.write_tables()
    found = {path.stem: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert "## DeepLab v2" in found.pop("reproduction-v2")
    assert found == {f"reproduction-{name}": "" for name in ("v1", "v3", "trimap")}


@pytest.mark.parametrize("rate", [1, 18, 33, 64, 70])
def test_valid_weights_are_those_that_the_operator_multiplies(docs, rate):
    pictures = importlib.import_module("pictures")
    share = pictures.valid_at_each_pixel(65, rate).mean() / 9
    live = atrousx.ops.live_fraction((65, 65), 3, padding=rate, dilation=rate)
    assert share == pytest.approx(live)
