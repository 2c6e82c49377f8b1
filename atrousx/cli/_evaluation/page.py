"""The report: one page of HTML that needs no other file and asks for nothing from the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ...metrics import ConfusionMatrix
from . import charts
from .pictures import Extremes, Shown
from .results import ABSENT, NO_VOID, SHOWN_WIDTHS, Results, columns, percent, trimap_curves

STYLE = Path(__file__).with_name("page.css")
MOST_CONFUSED = 10
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
"""


def page(results: Results, extremes: Extremes) -> str:
    """Returns the page of one evaluation."""
    title = f"{results.settings['weights']} on {results.settings['dataset']}"
    sections = [
        _header(title, results),
        _section("Classes", _classes(results)),
        _section("Confusion", _confusion(results)),
    ]
    if results.evaluation.labels.trimap is not None:
        sections.append(_section("Near the borders", _trimap(results)))
    if extremes.found:
        sections.append(_section("Pictures", _pictures(extremes)))
    sections.append(_section("How it was measured", _settings(results)))
    return (
        f"{HEAD}<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n"


def _header(title: str, results: Results) -> str:
    evaluation = results.evaluation
    confusion, before = evaluation.final.confusion, evaluation.labels.confusion
    boundary = evaluation.final.boundary
    facts = [("mean IoU", confusion.mean_iou(), before.mean_iou())]
    if boundary is not None and evaluation.labels.boundary is not None:
        mean = evaluation.labels.boundary.mean_iou()
        facts.append(("mean boundary IoU", boundary.mean_iou(), mean))
    facts += [
        ("pixel accuracy", confusion.accuracy(), before.accuracy()),
        ("mean accuracy", confusion.mean_accuracy(), before.mean_accuracy()),
        (
            "frequency-weighted IoU",
            confusion.frequency_weighted_iou(),
            before.frequency_weighted_iou(),
        ),
    ]
    cells = []
    for name, value, first in facts:
        note = f"<small>{percent(first)} before the CRF</small>" if evaluation.refined else ""
        cells.append(f"<div><dt>{name}</dt><dd><b>{percent(value)}<i> %</i></b>{note}</dd></div>\n")
    count = f"{evaluation.images} image{'' if evaluation.images == 1 else 's'}"
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        f"<p>{count}, {len(results.classes)} classes</p>\n"
        f'<dl class="facts">\n{"".join(cells)}</dl>\n</header>\n'
    )


def _classes(results: Results) -> str:
    evaluation, found = results.evaluation, columns(results.evaluation)
    shares = evaluation.final.confusion.matrix.double().sum(1)
    shares = shares / shares.sum()
    final = found[0].values
    before = found[1].values if evaluation.refined else [None] * len(final)
    rows = []
    for label, name in enumerate(results.classes):
        numbers = [column.values[label] for column in found] + [float(shares[label])]
        bar = charts.bar(final[label], before[label], label)
        rows.append(_row(_named(label, name), f'<td class="drawn">{bar}</td>', numbers))
    means = [column.mean for column in found]
    foot = _row("mean", '<td class="drawn"></td>', means, last="<td></td>")
    titles = [column.title for column in found] + ["share of pixels"]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    bars = 'Bars show the IoU{}. Numbers are per cent. "-" means that there is no value. {}'
    tick = " with the CRF; a tick marks the IoU before" if evaluation.refined else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Measures of each class">'
        '<table class="classes">\n<thead><tr><th scope="col" class="name">class</th>'
        f'<td class="drawn"></td>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n<tfoot>\n{foot}</tfoot>\n</table></div>\n"
        f'<p class="note">{bars.format(tick, ABSENT)}</p>\n'
    )


def _named(label: int, name: str) -> str:
    swatch = f'<span class="swatch" style="background:{charts.colour(label)}"></span>'
    return f"{swatch}{escape(name)}"


def _row(name: str, bar: str, values: Iterable[float], last: str = "") -> str:
    cells = "".join(f"<td>{percent(value)}</td>" for value in values)
    return f'<tr><th scope="row" class="name">{name}</th>{bar}{cells}{last}</tr>\n'


def _confusion(results: Results) -> str:
    confusion = results.evaluation.final.confusion
    rows = [
        f"<tr><td>{_named(true, results.classes[true])}</td>"
        f"<td>{_named(predicted, results.classes[predicted])}</td>"
        f'<td class="number">{percent(share, 1)}</td></tr>\n'
        for share, true, predicted in most_confused(confusion)
    ]
    table = (
        '<table>\n<thead><tr><th scope="col">true class</th><th scope="col">labelled as</th>'
        f'<th scope="col" class="number">%</th></tr></thead>\n<tbody>\n{"".join(rows)}</tbody>\n'
        "</table>\n"
    )
    matrix = charts.confusion_matrix(confusion, results.classes)
    return (
        '<div class="pair"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Confusion matrix">{matrix}</div>\n'
        f"<div><h3>Most confused</h3>\n{table}</div></div>\n"
        '<p class="note">Rows are true classes, columns are labels. Each entry is a share of the '
        "pixels of the true class; shares below 0.5 % are not drawn.</p>\n"
    )


def most_confused(confusion: ConfusionMatrix) -> list[tuple[float, int, int]]:
    """Returns share of the true class, true class and label of the largest wrong entries."""
    matrix = confusion.matrix.double()
    shares = (matrix / matrix.sum(1, keepdim=True)).tolist()
    wrong = [
        (share, true, predicted)
        for true, row in enumerate(shares)
        for predicted, share in enumerate(row)
        if true != predicted and share > 0
    ]
    return sorted(wrong, reverse=True)[:MOST_CONFUSED]


def _trimap(results: Results) -> str:
    curves = trimap_curves(results.evaluation)
    if not any(curve for _, curve in curves):
        return f"<p>{NO_VOID}</p>\n"
    head = "".join(f'<th scope="col" class="number">{escape(title)}</th>' for title, _ in curves)
    rows = []
    for width in SHOWN_WIDTHS:
        values = [dict(curve).get(width, math.nan) for _, curve in curves]
        cells = "".join(f'<td class="number">{percent(value)}</td>' for value in values)
        rows.append(f'<tr><th scope="row" class="number">{width}</th>{cells}</tr>\n')
    return (
        f'<div class="pair"><div>{charts.trimap(curves)}</div>\n<div><h3>Mean IoU in %</h3>\n'
        f'<table>\n<thead><tr><th scope="col" class="number">width</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div></div>\n"
        '<p class="note">Mean IoU of the pixels that are at most so many pixels away from the '
        "truth's ignored pixels, which surround the objects.</p>\n"
    )


def _pictures(extremes: Extremes) -> str:
    best, worst = extremes.best_and_worst()
    note = "The number is the mean IoU of the classes that occur or are predicted in the picture."
    return (
        f'<div class="shown">\n{_column("Best", best)}{_column("Worst", worst)}</div>\n'
        f'<p class="note">Photograph, truth, prediction. {note}</p>\n'
    )


def _column(title: str, shown: Sequence[Shown]) -> str:
    figures = []
    for one in shown:
        drawn = "".join(
            f'<img src="{uri}" alt="{kind} {escape(one.name)}">'
            for kind, uri in (
                ("photograph", one.photograph),
                ("true labels of", one.truth),
                ("predicted labels of", one.prediction),
            )
        )
        figures.append(
            f'<figure><div class="three">{drawn}</div><figcaption><span>{escape(one.name)}</span>'
            f"<b>{percent(one.mean_iou, 1)} %</b></figcaption></figure>\n"
        )
    return f"<div><h3>{title}</h3>\n{''.join(figures)}</div>\n" if figures else ""


def _settings(results: Results) -> str:
    rows = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_written(value))}</dd></div>\n"
        for name, value in results.settings.items()
    )
    return f'<dl class="settings">\n{rows}</dl>\n'


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_written(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
