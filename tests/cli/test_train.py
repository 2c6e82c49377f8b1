"""``atrousx train``: a run from options to weights, stopping and going on, and bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atrousx import models
from atrousx.cli import main
from atrousx.training.checkpoint import read
from tests.training.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--format", "voc", "--recipe", "v1", "--width", "0.05", "--crop", "33", "--batch-size", "2"),
    *("--workers", "0", "--device", "cpu", "--log-every", "1"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"))


def run(root, out, *options):
    try:
        return main(["train", str(root), *SMALL, "--out", str(out), *map(str, options)])
    except SystemExit as stop:
        return stop.code


def weights(path):
    return read(path)["model"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_from_options_to_weights(scenes, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert run(scenes, out, "--iterations", 2, "--check", "--lr", "0.002") == 0
    printed = capsys.readouterr()
    assert "DeepLab v1 with vgg16" in printed.out
    assert "7 classes, 6 training images" in printed.out
    assert "the weights are random: nothing was loaded" in printed.out
    assert "iteration 2 of 2: loss" in printed.err
    assert "mean IoU" in printed.err
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["loss", "loss", "evaluation"]
    assert lines[0]["lr"] == 0.002
    model = models.from_weights(out / "iteration_00000002.pt")
    assert model.classifier[-1].out_channels == 7
    state = read(out / "best.pt")
    assert state["recipe"]["crop"] == (33, 33)
    assert state["classes"][0] == "background"


def test_one_recipe_after_another(scenes, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--iterations", 2, "--no-validation", "--then", "v1,iterations=1,lr=0.0005,crop=41"]
    assert run(scenes, out, *options) == 0
    assert "the weights are those of the recipe before" in capsys.readouterr().out
    second = read(out / "2_v1" / "iteration_00000001.pt")
    assert second["recipe"]["lr"] == 0.0005
    assert second["recipe"]["crop"] == (41, 41)
    # Resuming skips the recipes that are done.
    before = (out / "1_v1" / "iteration_00000002.pt").stat().st_mtime_ns
    assert run(scenes, out, *options, "--resume") == 0
    assert (out / "1_v1" / "iteration_00000002.pt").stat().st_mtime_ns == before


def test_resuming_needs_the_option(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "run", "--iterations", 1, "--no-validation") == 0
    assert run(scenes, tmp_path / "run", "--iterations", 1, "--no-validation") == 2
    assert "holds the checkpoints of a run; --resume goes on with it" in capsys.readouterr().err
    resume = ["--iterations", 3, "--no-validation", "--resume"]
    assert run(scenes, tmp_path / "run", *resume) == 2
    assert "of another recipe: iterations was 1 and is 3" in capsys.readouterr().err


def test_weights_of_other_classes_start_a_run(scenes, tmp_path, capsys):
    start = models.deeplab_v1(21, width=0.05)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    options = ["--iterations", 1, "--no-validation", "--lr", "1e-30", "--weight-decay", 0]
    assert run(scenes, tmp_path / "run", *options, "--weights", tmp_path / "start.pth") == 0
    assert "tensors loaded, recognised as deeplab_v1" in capsys.readouterr().out
    found = weights(tmp_path / "run" / "iteration_00000001.pt")
    own = {k: v for k, v in start.state_dict().items() if not k.startswith("classifier.6.")}
    for name, value in own.items():
        torch.testing.assert_close(found[name], value)
    assert found["classifier.6.weight"].shape[0] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "0"], "--recipe: crop must be two positive whole numbers"),
        (["--crop", "a"], "argument --crop: invalid HxW value: 'a'"),
        (["--backbone", "resnet50"], "--recipe: backbone must be vgg16 for v1"),
        (["--then", "v9"], "--then v9: a recipe is one of v1, v2_vgg16"),
        (["--then", "v1,rate=1"], "--then v1,rate=1: 'rate=1' is not FIELD=VALUE of a recipe"),
        (["--then", "v1,lr=fast"], "--then v1,lr=fast: 'fast' is no value of lr"),
        (["--weights", "nothing.pth"], "--weights nothing.pth: there is no weights file nothing"),
        (["--split", "test"], "test.txt"),
        (["--keep", "0"], "--keep must be at least 1, got 0"),
        (["--save-every", "0"], "--save-every must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named_in_one_line(scenes, tmp_path, capsys, options, message):
    assert run(scenes, tmp_path / "run", "--iterations", 1, *options) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


def test_a_damaged_photograph_is_named_before_or_while_training(tmp_path, capsys):
    root = make_scenes(tmp_path / "scenes")
    name = (root / "ImageSets/Segmentation/train.txt").read_text().split()[0]
    broken = root / "JPEGImages" / f"{name}.jpg"
    broken.write_bytes(b"no picture")
    assert run(root, tmp_path / "checked", "--iterations", 3, "--check") == 2
    assert f"{broken}: not an image" in capsys.readouterr().err
    for workers in (0, 1):
        out = tmp_path / f"run{workers}"
        assert run(root, out, "--iterations", 3, "--workers", workers, "--no-validation") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"atrousx train: {broken}: not an image")


def test_a_full_disk_is_named(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("atrousx.training.watch.LOG", "full.jsonl")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("os.replace", lambda source, target: os.symlink("/dev/full", target))
    assert run(scenes, tmp_path / "run", "--iterations", 1, "--no-validation") == 2
    error = capsys.readouterr().err.strip()
    assert error == f"atrousx train: {tmp_path / 'run/full.jsonl'}: No space left on device"


def command(scenes, out, *options, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launch = [*launch, "--max-restarts", "1"] if processes > 1 else []
    fixed = ["-m", "atrousx", "train", scenes, *SMALL, "--no-validation", "--out", out]
    return [sys.executable, *launch, *map(str, [*fixed, *options])]


@pytest.mark.slow
def test_killed_at_random_moments_a_run_gives_the_same_bits(scenes, tmp_path):
    """SIGKILL may come while a file is written. SIGTERM ends the run with a checkpoint."""
    options = ["--iterations", 40, "--save-every", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run(scenes, tmp_path / "whole", "--no-validation", *options) == 0
    out, moments = tmp_path / "killed", random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            command(scenes, out, *options, "--resume"), cwd=ROOT, env=environment
        )
        deadline = time.monotonic() + 300
        before = max((path.name for path in out.glob("iteration_*")), default="")
        while time.monotonic() < deadline and process.poll() is None:
            if max((path.name for path in out.glob("iteration_*")), default="") != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(number)
        process.wait(60)
        read(max(out.glob("iteration_*")))
    subprocess.run(
        command(scenes, out, *options, "--resume"), cwd=ROOT, env=environment, check=True
    )
    last = "iteration_00000040.pt"
    assert same(weights(tmp_path / "whole" / last), weights(out / last))


@pytest.mark.slow
def test_under_torchrun(scenes, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = command(scenes, tmp_path / "run", "--iterations", 2, processes=2)
    done = subprocess.run(
        start, cwd=ROOT, env=environment, check=True, timeout=600, capture_output=True, text=True
    )
    assert done.stdout.count("DeepLab v1 with vgg16") == 1
    assert (tmp_path / "run" / "iteration_00000002.pt").exists()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_process_that_dies_restarts_the_job_from_its_checkpoint(scenes, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--iterations", 30, "--save-every", 1]
    whole = command(scenes, tmp_path / "whole", *options, processes=2)
    subprocess.run(whole, cwd=ROOT, env=environment, check=True, timeout=600)
    out = tmp_path / "killed"
    job = subprocess.Popen(command(scenes, out, *options, processes=2), cwd=ROOT, env=environment)
    while job.poll() is None and not list(out.glob("iteration_*")):
        time.sleep(0.01)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    assert job.wait(600) == 0
    last = "iteration_00000030.pt"
    assert same(weights(tmp_path / "whole" / last), weights(out / last))
