"""What a person sees: lines and a bar, the log, TensorBoard, the curves."""

import json
import sys

import numpy as np
import pytest
import torch

from atrousx.data import Sample
from atrousx.metrics import Labels
from atrousx.training import Console, JsonLines, TensorBoard, draw_curves
from atrousx.training.watch import Progress, _duration, read_log

LOSS = {"loss": 1.25, "lr": 0.01}
RESULT = {"mean_iou": 0.5, "accuracy": 0.75, "iou": {"sky": 0.5, "absent": float("nan")}}


def told(watcher):
    for iteration in (1, 10, 20):
        watcher.event("loss", Progress(iteration, 40, 8), LOSS)
    watcher.event("evaluation", Progress(20, 40, 8), RESULT)
    watcher.close()


def test_lines_where_there_is_no_terminal(capsys):
    told(Console(0, 40))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("iteration 1 of 40: loss 1.2500, rate 0.01, ")
    assert lines[1].endswith(" left")
    assert "images/s" in lines[1]
    assert lines[3] == "iteration 20: mean IoU 50.00%, accuracy 75.00%"


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console(5, 40)
    told(console)
    assert console._bar.n == 20
    shown = capsys.readouterr().err
    assert "20/40" in shown
    assert "iteration 20: mean IoU 50.00%" in shown


@pytest.mark.parametrize(("seconds", "text"), [(9.6, "0:10"), (61, "1:01"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert _duration(seconds) == text


def test_the_log_is_json_and_continues(tmp_path):
    assert read_log(tmp_path) == []
    told(JsonLines(tmp_path, 0))
    log = read_log(tmp_path)
    assert log[0] == {"event": "loss", "iteration": 1, **LOSS}
    assert log[-1]["iou"] == {"sky": 0.5, "absent": None}
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "lo')  # the process was killed here
    assert read_log(tmp_path) == log
    JsonLines(tmp_path, 10).event("loss", Progress(11, 40, 8), LOSS)
    assert [line["iteration"] for line in read_log(tmp_path)] == [1, 10, 11]
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    watcher = TensorBoard(tmp_path)
    sample = Sample("one", np.zeros((5, 6, 3), np.uint8), np.ones((5, 6), np.uint8))
    for index in range(9):
        watcher.picture(20, index, sample, Labels(torch.zeros(5, 6, dtype=torch.int64), None))
    told(watcher)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss/loss", "loss/lr", "evaluation/mean_iou", "iou/sky"} <= set(
        found.Tags()["scalars"]
    )
    assert [event.value for event in found.Scalars("loss/loss")] == [1.25] * 3
    (picture, *_) = found.Images("validation/one")
    assert (picture.height, picture.width) == (5, 18)


def test_curves_are_drawn_with_or_without_an_evaluation(tmp_path):
    pytest.importorskip("matplotlib")
    log = JsonLines(tmp_path, 0)
    log.event("loss", Progress(1, 2, 8), LOSS)
    without = draw_curves(tmp_path).read_bytes()
    log.event("evaluation", Progress(1, 2, 8), RESULT)
    assert draw_curves(tmp_path).read_bytes() != without


def test_without_matplotlib_there_are_no_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_curves(tmp_path) is None
