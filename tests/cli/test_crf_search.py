"""``atrousx crf-search`` on a tiny generated validation set, and the parts of the search."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from atrousx import crf, data
from atrousx.cli import main

LABELS = 3


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two photographs of three stripes, with noisy half-size scores and a frame of 255."""
    random = np.random.default_rng(0)
    for name in ("images", "scores", "labels"):
        (tmp_path / name).mkdir()
    for name, width in (("one", 30), ("two", 24)):
        labels = np.repeat([0, 1, 2], width // 3)[None].repeat(20, 0).astype(np.uint8)
        image = labels[..., None] * np.array([90, 40, 0], np.uint8) + random.integers(
            0, 30, (20, width, 3)
        )
        scores = (labels[::2, ::2] == np.arange(LABELS)[:, None, None]) + random.normal(
            0, 0.8, (LABELS, 10, width // 2)
        )
        labels[0] = 255
        data.write_image(tmp_path / "images" / f"{name}.png", image.astype(np.uint8))
        data.write_labels(tmp_path / "labels" / f"{name}.png", labels)
        np.save(tmp_path / "scores" / f"{name}.npy", scores.astype(np.float32))
    return tmp_path


def search(folders: Path, *options: str) -> object:
    """Returns the exit code, including argparse's own exits."""
    arguments = [f"--{n}={folders / n}" for n in ("images", "scores", "labels", "out")]
    grid = ["--bilateral-weight=1,5", "--bilateral-sigma-xy=6", "--bilateral-sigma-rgb=5,20"]
    try:
        return main(["crf-search", *arguments, *grid, "--iterations=3", "--device=cpu", *options])
    except SystemExit as stop:
        return stop.code


def labelled(folders: Path, options: dict | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns true and found labels of both photographs, using the public operators."""
    pairs = []
    for name in ("one", "two"):
        true = data.read_labels(folders / "labels" / f"{name}.png")
        image = torch.from_numpy(data.read_image(folders / "images" / f"{name}.png"))
        scores = torch.from_numpy(np.load(folders / "scores" / f"{name}.npy"))[None]
        scores = atrousx.ops.upsample_bilinear2d(scores, size=true.shape)
        if options is not None:
            scores = atrousx.DenseCRF(LABELS, **options)(scores, image.permute(2, 0, 1)[None])
        pairs.append((true, scores.argmax(1)[0].numpy()))
    return pairs


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    true, found = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    true, found = true[true != 255], found[true != 255]
    ious = [
        ((true == label) & (found == label)).sum() / ((true == label) | (found == label)).sum()
        for label in range(LABELS)
    ]
    return float(np.mean(ious))


def test_search_finds_what_the_crf_gives(folders, capsys):
    assert search(folders) == 0
    report = json.loads((folders / "out" / "crf-search.json").read_text())
    assert report["photographs"] == 2
    # 2 x 1 x 2 settings in the first round. 3 x 1 x 3 in the second, where the best is already
    # known. A step below the smallest sigma may not be positive, so the second round can be
    # smaller.
    assert len(report["settings"]) in (4 + 8, 4 + 5)
    assert report["mean_iou"] == max(s["mean_iou"] for s in report["settings"])
    assert report["mean_iou_without_crf"] == pytest.approx(mean_iou(labelled(folders, None)))
    # "best" has arguments of DenseCRF, and these give the reported result.
    assert report["mean_iou"] == pytest.approx(mean_iou(labelled(folders, report["best"])))
    assert report["mean_iou"] > report["mean_iou_without_crf"]
    fixed = {k: report["best"][k] for k in crf.FixedOptions._fields}
    for setting in report["settings"][:4]:
        expected = setting.pop("mean_iou")
        assert expected == pytest.approx(mean_iou(labelled(folders, setting | fixed)))
    text = capsys.readouterr().out
    assert "round 1 of 2: 4 combinations:" in text
    assert f"best, {report['mean_iou']:.2%}: --bilateral-weight " in text
    assert data.read_image(folders / "out" / "crf-search.png").shape[0] > 200


def test_probabilities_an_npz_and_the_first_photograph_alone(folders):
    assert search(folders, "--rounds=1", "--limit=1") == 0
    report = json.loads((folders / "out" / "crf-search.json").read_text())
    scores = torch.from_numpy(np.load(folders / "scores" / "one.npy"))
    # log(softmax), upsampled, differs from softmax, upsampled. So the scores have the photograph's
    # size.
    scores = atrousx.ops.upsample_bilinear2d(scores[None], size=(20, 30))
    np.savez(folders / "scores" / "one.npz", p=scores.softmax(1).numpy())
    (folders / "scores" / "one.npy").unlink()
    assert search(folders, "--rounds=1", "--limit=1", "--probabilities") == 0
    again = json.loads((folders / "out" / "crf-search.json").read_text())
    assert again["photographs"] == 1
    for old, new in zip(report["settings"], again["settings"], strict=True):
        assert new["mean_iou"] == pytest.approx(old["mean_iou"], abs=2e-3)


def test_mean_iou_by_hand():
    # Label 0: 3 of 3 true, and 1 too many. Label 1: 1 of 2. Label 2: never true, found once.
    counts = np.array([[3, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert crf.mean_iou(counts) == pytest.approx((3 / 4 + 1 / 2) / 2)
    counts = np.array([[3, 0, 1], [0, 2, 0], [0, 0, 0]])
    assert crf.mean_iou(counts) == pytest.approx((3 / 4 + 1) / 2)
    assert math.isnan(crf.mean_iou(np.zeros((3, 3), int)))


def test_finer_grids_by_hand():
    grid = crf.Grid((3.0, 4.0, 6.0), (50.0,), (1.0, 3.0))
    finer = grid.around(crf.Setting(4.0, 50.0, 1.0))
    assert finer == ((3.5, 4.0, 5.0), (50.0,), (1.0, 2.0))  # 0 would not be positive
    assert finer.around(crf.Setting(5.0, 50.0, 2.0)) == ((4.5, 5.0, 5.5), (50.0,), (1.5, 2.0, 2.5))
    asked = []

    def evaluate(settings):
        asked.extend(settings)
        return {s: -abs(s.bilateral_weight - 4.6) - s.bilateral_sigma_rgb for s in settings}

    rounds = list(crf.coarse_to_fine(grid, 4, evaluate))
    assert len(asked) == len(set(asked))  # no setting is computed twice
    assert crf.best_setting(rounds[-1].scores).bilateral_weight == 4.5


def replace(path: Path, array: np.ndarray) -> None:
    np.save(path, array) if path.suffix == ".npy" else data.write_labels(path, array)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels/two.png", None, r"no labels for two.npy"),
        ("images/two.png", None, r"no photograph for two.npy"),
        (
            "scores/two.npy",
            np.zeros((4, 10, 12), "f4"),
            "two.npy has 4 labels, .*one.npy has 3",
        ),
        ("scores/two.npy", np.zeros((3, 10, 25), "f4"), "two.npy is 25x10, larger than .*is 24x20"),
        ("scores/two.npy", np.zeros((10, 12), "f4"), r"two.npy: scores must be .*float32 \[10, 12"),
        ("scores/two.npy", np.zeros((3, 5, 5), int), r"two.npy: scores must be a floating array"),
        ("scores/two.npy", np.full((3, 5, 5), np.nan), "two.npy: scores must be finite"),
        (
            "labels/two.png",
            np.zeros((20, 23), np.uint8),
            "two.png is 23x20, .*two.png is 24x20",
        ),
        ("labels/two.png", np.full((20, 24), 3, np.uint8), "holds label 3, but .* for 0 to 2"),
    ],
)
def test_files_that_do_not_belong_together(folders, capsys, file, content, message):
    path = folders / file
    path.unlink() if content is None else replace(path, content)
    assert search(folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atrousx crf-search: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bilateral-sigma-xy", "30,-1"], "invalid list of positive numbers value: '30,-1'"),
        (["--bilateral-weight", ""], "invalid list of positive numbers value"),
        (["--rounds", "0"], "invalid positive whole number value: '0'"),
        (["--gaussian-sigma-xy", "nan"], "invalid positive number value: 'nan'"),
        (["--bilateral-sigma-rgb", "1e-30"], "divide by a larger sigma"),
        (["--probabilities"], "one.npy: probabilities must lie in 0..1"),
        (["--scores", "nowhere"], "--scores nowhere: No such file or directory"),
        (["--labels", "."], "--labels .: holds no file ending in .png"),
    ],
)
def test_wrong_options(folders, capsys, options, message):
    assert search(folders, *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_labels_all_ignored(folders, capsys):
    for name, width in (("one", 30), ("two", 24)):
        data.write_labels(folders / "labels" / f"{name}.png", np.full((20, width), 255, np.uint8))
    assert search(folders) == 2
    assert "the labels hold nothing but 255" in capsys.readouterr().err
