"""``atrousx evaluate`` with a tiny network, and once with a DeepLab from a file."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from atrousx import data, metrics, models
from atrousx.cli import evaluate, main
from atrousx.data import Folder
from tests.data import layouts
from tests.metrics.pictures import CLASSES, Tiny, pictures

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ground", "<b>tree</b> & bush", "house", "water")


def write_set(root: Path, count: int = 5) -> Path:
    """A dataset in a plain folder."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for item in pictures(count):
        data.write_image(root / "images" / f"{item.name}.png", item.image)
        data.write_labels(root / "labels" / f"{item.name}.png", item.labels)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def tiny(classes: int = CLASSES) -> Tiny:
    torch.manual_seed(0)
    return Tiny(classes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The dataset; commands load the tiny network in place of weights."""
    monkeypatch.setattr(evaluate, "load_model", lambda args: (tiny(), CLASSES))
    return write_set(tmp_path / "set")


def run(root: Path, *options: object, layout: str = "folder") -> object:
    fixed = ["--format", layout, "--weights", "tiny.pth", "--device", "cpu", "--workers", "0"]
    try:
        return main(["evaluate", str(root), *fixed, *map(str, options)])
    except SystemExit as stop:
        return stop.code


def test_numbers_are_printed_and_written(folder, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    assert run(folder, "--out", out, "--boundary", "--trimap", "--flip", "--scales", "0.5,1") == 0
    expected = metrics.evaluate(
        tiny(), Folder(folder), scales=(0.5, 1), flip=True, boundary=True, trimap_widths=(1, 5)
    ).labels
    written = json.loads((out / "evaluation.json").read_text())
    network = written["network"]
    assert network["confusion_matrix"] == expected.confusion.matrix.tolist()
    assert network["mean_iou"] == expected.confusion.mean_iou()
    assert network["iou"] == dict(zip(NAMES, expected.confusion.iou().tolist(), strict=True))
    assert network["boundary_mean_iou"] == expected.boundary.mean_iou()
    assert len(network["trimap_mean_iou"]) == 40
    assert network["trimap_mean_iou"]["5"] == float(expected.trimap.mean_iou()[1])
    assert written["images"] == 5
    assert written["settings"]["flip"] is True
    for plot in ("confusion.png", "trimap.png"):
        assert data.read_image(out / plot).shape[0] > 100
    table = capsys.readouterr().out
    assert table.startswith("5 images, 4 classes; numbers in %\n")
    mean = re.search(r"^mean +([\d.]+) +([\d.]+) +([\d.]+)$", table, re.MULTILINE)
    assert float(mean[1]) == pytest.approx(100 * expected.confusion.mean_iou(), abs=0.006)
    assert float(mean[3]) == pytest.approx(100 * expected.boundary.mean_iou(), abs=0.006)


def test_numbers_before_and_after_the_crf(folder, tmp_path, capsys):
    assert run(folder, "--out", tmp_path, "--crf", "--iterations", 1, "--trimap") == 0
    written = json.loads((tmp_path / "evaluation.json").read_text())
    before, after = (written[name]["mean_iou"] for name in ("before_crf", "with_crf"))
    assert before == metrics.evaluate(tiny(), Folder(folder)).mean_iou() != after
    assert written["settings"]["crf"]["iterations"] == 1
    assert written["settings"]["crf"]["bilateral_sigma_xy"] == 67
    assert "IoU with CRF  IoU before CRF" in capsys.readouterr().out


def test_labels_are_written_as_the_data_set_has_them(folder, tmp_path):
    assert run(folder, "--write", tmp_path / "w") == 0
    dataset, found = Folder(folder), {}
    metrics.evaluate(
        tiny(), dataset, on_result=lambda i, item, labels: found.update({item.name: labels.final})
    )
    assert len(list((tmp_path / "w").iterdir())) == 5
    for name, labels in found.items():
        written = data.read_labels(tmp_path / "w" / f"{name}.png")
        assert np.array_equal(written, labels.numpy())


def test_cityscapes_without_truth_gets_its_label_ids(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_model", lambda args: (tiny(19), 19))
    root = layouts.write_cityscapes(tmp_path / "cityscapes")
    (root / "leftImg8bit" / "val").rename(root / "leftImg8bit" / "test")
    options = ("--split", "test", "--no-truth", "--write", tmp_path / "w")
    assert run(root, *options, layout="cityscapes") == 0
    assert capsys.readouterr().out == f"the labels of 3 images are in {tmp_path}/w\n"
    numbers = {int(n) for path in (tmp_path / "w").iterdir() for n in np.unique(_grey(path))}
    assert len(numbers) > 3
    assert numbers <= set(data.cityscapes.LABEL_IDS)


def _grey(path: Path) -> data.Image:
    return np.asarray(data.opencv().imread(str(path), -1))


def test_voc_is_evaluated_on_val(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_model", lambda args: (tiny(21), 21))
    assert run(layouts.write_voc(tmp_path / "VOC2012"), layout="voc") == 0
    assert capsys.readouterr().out.startswith("1 images, 21 classes")


def test_classes_that_are_absent_are_named(folder, capsys):
    for path in (folder / "labels").iterdir():
        data.write_labels(path, np.zeros_like(data.read_labels(path)))
    assert run(folder, "--trimap") == 0
    printed = capsys.readouterr().out
    assert "so the trimap curve is NaN" in printed
    for path in (folder / "labels").iterdir():
        data.write_labels(path, np.full_like(data.read_labels(path), 255))
    assert run(folder, "--trimap", "--out", folder.parent / "out") == 0
    printed = capsys.readouterr().out
    assert "so nothing was measured" in printed
    assert not (folder.parent / "out" / "trimap.png").exists()
    written = json.loads((folder.parent / "out" / "evaluation.json").read_text())
    assert written["network"]["mean_iou"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "there is neither test.txt nor splits/test.txt in it"),
        (["--report", "missing/r.html"], "--report missing/r.html: there is no folder missing"),
        (["--report", "folder.html"], "--report folder.html: is a folder"),
        (["--report", "report.pdf"], "--report must name a .html file, got report.pdf"),
        (["--write", "labels"], "--write labels: holds files of the dataset; take another"),
        (["--out", "images"], "--out images: holds files of the dataset"),
        (["--out", "classes.txt"], "--out classes.txt: cannot make it: File exists"),
        (["--scales", "0"], "--scales"),
        (["--workers", "-1"], "--workers: invalid number of processes value: '-1'"),
        (["--tile", "20"], "tile must exceed overlap"),
        (["--crf", "--iterations", "-1"], "iterations"),
        (["--no-truth"], "--no-truth: without labels nothing is measured; give --write DIR"),
        (["--no-truth", "--write", "w", "--out", "o"], "--out needs the labels that --no-truth"),
    ],
)
def test_a_bad_option_is_one_line(options, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    Path("folder.html").mkdir()
    assert run(Path("."), *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atrousx evaluate: ")
    assert message in line


def test_weights_of_other_classes_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_model", lambda args: (tiny(7), 7))
    assert run(folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"atrousx evaluate: --weights tiny.pth: of 7 classes, but {folder} has 4"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(workers, folder, capsys):
    (folder / "images" / "picture 1.png").write_bytes(b"no image")
    assert run(folder, "--workers", workers) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"atrousx evaluate: {folder}/images/picture 1.png: not an image that OpenCV can read"
    )


def test_two_images_do_not_write_one_file(folder, capsys):
    for kind in ("images", "labels"):
        (folder / kind / "more").mkdir()
        (folder / kind / "more" / "picture 1.png").write_bytes(
            (folder / kind / "picture 1.png").read_bytes()
        )
    assert run(folder, "--write", folder / "w") == 2
    assert "2 images would write picture 1.png" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run(folder, "--device", "cuda") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "atrousx evaluate: --device cuda: PyTorch sees 2 GPUs for 3 processes"


def _rank(rank: int, world: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    folder = Path(root)
    files = ("--out", folder, "--write", folder / "w", "--report", folder / "report.html")
    loaded = mock.patch.object(evaluate, "load_model", return_value=(tiny(), CLASSES))
    with (folder / f"printed {rank}").open("w") as printed, loaded:
        sys.stdout = printed
        assert run(folder / "set", *files) == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_two_processes_give_the_results_of_one(folder, tmp_path, capsys):
    torch.multiprocessing.spawn(_rank, (2, free_port(), str(tmp_path)), nprocs=2)
    one = tmp_path / "one"
    assert run(folder, "--out", one, "--write", one / "w", "--report", one / "report.html") == 0
    assert (tmp_path / "printed 0").read_text() == capsys.readouterr().out
    assert (tmp_path / "printed 1").read_text() == ""
    for name in ("evaluation.json", "report.html", *(f"w/picture {n}.png" for n in range(5))):
        assert (tmp_path / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
def test_under_torchrun_with_weights_from_a_file(tmp_path):
    model = models.deeplab_v3(num_classes=CLASSES, layout="torchvision")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    root = write_set(tmp_path / "set", 3)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "atrousx", "evaluate", root, "--format", "folder", "--device", "cpu"]
    options = ["--weights", tmp_path / "weights.pth", "--out", tmp_path / "out"]
    subprocess.run([*launch, *map(str, [*command, *options])], cwd=ROOT, check=True, timeout=600)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    expected = metrics.evaluate(model, Folder(root)).labels.confusion.matrix.tolist()
    assert written["network"]["confusion_matrix"] == expected
