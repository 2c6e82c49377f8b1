"""The page of ``atrousx evaluate`` and the plots."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from atrousx.cli._evaluation.axis import Axis
from atrousx.cli._evaluation.page import most_confused, page
from atrousx.cli._evaluation.pictures import Extremes
from atrousx.cli._evaluation.plots import confusion_plot, trimap_plot
from atrousx.cli._evaluation.results import Results
from atrousx.metrics import ConfusionMatrix, Evaluation, Measures
from tests.metrics.pictures import CLASSES, blocks
from tests.optional import given, settings, st

VOID = {"meta", "link", "img"}
NAMES = ("ground", "<script>alert(1)</script>", 'a "quoted" name', "water & ice")
SETTINGS = {"weights": "a<b>.pth", "dataset": "set, val", "flip": False, "crf": {"iterations": 10}}


class Parsed(HTMLParser):
    """Checks that elements nest, and collects links, texts and elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def measured(seed: int = 0, void: bool = True) -> tuple[Measures, Extremes]:
    random = np.random.default_rng(seed)
    measures = Measures(CLASSES, boundary=True, trimap_widths=range(1, 41))
    extremes = Extremes(CLASSES, count=2)
    for number in range(6):
        true, predicted = blocks(random, 20, 30).byte(), blocks(random, 20, 30).byte()
        predicted[predicted == 255] = 0
        if not void:
            true[true == 255] = 0
        measures.update(predicted, true)
        image = random.integers(256, size=(20, 30, 3), dtype=np.uint8)
        extremes.add(number, f"<{number}>", image, true.numpy(), predicted.numpy())
    return measures, extremes


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    (before, _), (after, extremes) = measured(1), measured(2)
    return Parsed(page(Results(NAMES, Evaluation(before, after, 6), SETTINGS), extremes))


def test_the_page_is_well_formed_and_needs_no_other_file(parsed):
    assert parsed.open == []
    assert len(parsed.links) > 6
    assert all(link.startswith("data:") for link in parsed.links)


def test_names_are_text_and_not_markup(parsed):
    assert not any(tag == "script" for tag, _ in parsed.found)
    for name in (*NAMES, "a<b>.pth on set, val"):
        assert name in parsed.text


def test_pictures_and_charts_have_a_text(parsed):
    images = [found for tag, found in parsed.found if tag == "img"]
    assert len(images) == 3 * 4  # two best and two worst
    assert all(found["alt"] for found in images)
    for tag, found in parsed.found:
        if tag == "svg":
            assert found.get("aria-label") or found.get("aria-hidden") == "true"


def test_the_page_says_what_is_missing():
    measures, _ = measured(void=False)
    nothing = Extremes(CLASSES)
    text = page(Results(NAMES, Evaluation(measures, None, 6), SETTINGS), nothing)
    assert "so the trimap curve is NaN" in text
    assert "Pictures" not in Parsed(text).text
    empty = page(Results(NAMES, Evaluation(Measures(CLASSES), None, 0), SETTINGS), nothing)
    assert "nan" not in Parsed(empty).text


def test_most_confused_by_hand():
    confusion = ConfusionMatrix(3)
    confusion.matrix = torch.tensor([[6, 2, 2], [0, 10, 0], [0, 0, 0]])
    assert most_confused(confusion) == [(0.2, 0, 2), (0.2, 0, 1)]


def uniform(number: int, right: int) -> tuple[int, str, np.ndarray, np.ndarray, np.ndarray]:
    """A picture of one class; ``right`` of its eight pixels are labelled so."""
    true, predicted = np.zeros((2, 4), np.uint8), np.ones((2, 4), np.uint8)
    predicted.flat[:right] = 0
    return number, str(number), np.zeros((2, 4, 3), np.uint8), true, predicted


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 20])
def test_the_best_and_the_worst_are_kept_whatever_the_order(count, parts):
    random = np.random.default_rng(count)
    right = random.integers(9, size=count).tolist()
    kept = [Extremes(2, count=2) for _ in range(parts)]
    for number in random.permutation(count).tolist():
        kept[number % parts].add(*uniform(number, right[number]))
    for other in kept[1:]:
        kept[0].merge(other.found)
    best, worst = kept[0].best_and_worst()
    # IoU: of class 0 right / 8, of class 1 zero, and class 1 is absent where all are right.
    score = [one / 16 if one < 8 else 1.0 for one in right]
    order = sorted(range(count), key=lambda number: (score[number], number))
    half = min(2, count // 2)
    assert [shown.number for shown in worst] == order[:half]
    assert [shown.number for shown in best] == order[::-1][: min(2, count - half)]
    assert [shown.mean_iou for shown in worst] == [score[number] for number in order[:half]]


def test_pictures_without_truth_are_not_shown():
    extremes = Extremes(2)
    number, name, image, true, predicted = uniform(0, 3)
    extremes.add(number, name, image, np.full_like(true, 255), predicted)
    assert extremes.found == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1))
def test_axes_hold_all_values(values, other):
    curves = [("a", list(enumerate(values, 1))), ("b", [(1, other)])]
    axis = Axis.of(curves)
    for _, curve in curves:
        for width, value in curve:
            assert -1e-9 <= axis.up(100 * value) <= 1 + 1e-9
            assert 0 < axis.across(width) <= 1
    assert 2 <= len(axis.values()) <= 9
    one, two = axis.ends(curves, 0.1)
    assert abs(one - two) >= 0.0999


def test_a_full_cell_of_the_matrix_is_blue():
    confusion = ConfusionMatrix(2)
    confusion.matrix = torch.tensor([[3, 0], [0, 0]])  # class 1 does not occur
    blue = (confusion_plot(confusion, ("a", "b"), "")[..., 0] == 0).sum()
    assert 1500 < blue < 2 * 46 * 46


def test_two_equal_curves_are_drawn_and_named_apart():
    curve = [(width, 0.5 + width / 100) for width in range(1, 41)]
    one, both = (
        trimap_plot(curves, "title")
        for curves in ([("a", curve)], [("before CRF", curve), ("with CRF", curve)])
    )
    assert one.shape == both.shape
    ink = [(plot.min(-1) < 100).sum() for plot in (one, both)]
    assert ink[1] > ink[0] > 1000
