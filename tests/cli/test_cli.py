"""The command line, called in this process as the entry point calls it."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from atrousx import data, models
from atrousx.cli import main, refine, segment
from atrousx.cli._progress import Progress

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 5


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.deeplab_v3(num_classes=CLASSES, backbone="resnet50", layout="torchvision").eval()


@pytest.fixture(scope="module")
def weights(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    data.write_image(path, generator.integers(0, 256, (33, 48, 3), dtype=np.uint8))
    return str(path)


def segment_args(weights: str, out: Path, *more: str) -> list[str]:
    fixed = ["--weights", weights, "--out", str(out)]
    return ["segment", *more, *fixed, "--device", "cpu"]


def errors(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().err.splitlines()


def exit_code(*arguments: str) -> object:
    """Returns the exit code that a shell would get, including argparse's own exits."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


# --- segment


def test_segment_writes_labels_and_overlay(model, weights, photograph, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    assert main(segment_args(weights, out, photograph)) == 0
    assert capsys.readouterr().out == "1 of 1 images done\n"
    image, labels = data.read_image(photograph), data.read_labels(out / "photo_labels.png")
    assert sorted(p.name for p in out.iterdir()) == ["photo_labels.png", "photo_overlay.png"]
    overlay = data.read_image(out / "photo_overlay.png")
    assert np.array_equal(overlay, data.overlay(image, labels))
    # The expected labels: torchvision's normalisation, then the largest score.
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = model((pixels - mean) / std)["out"].argmax(1)[0]
    assert np.array_equal(labels, expected.numpy())


def test_segment_with_crf_equals_the_crf_on_the_scores(model, weights, photograph, tmp_path):
    options = ("--crf", "--iterations", "2", "--bilateral-sigma-xy", "20")
    assert main(segment_args(weights, tmp_path, photograph, *options)) == 0
    labels = data.read_labels(tmp_path / "photo_labels.png")
    crf = atrousx.DenseCRF(CLASSES, bilateral_sigma_xy=20.0, iterations=2)
    expected = segment.segment_image(data.read_image(photograph), model, crf)
    assert np.array_equal(labels, expected)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_segment_with_the_other_models(version, photograph, tmp_path):
    torch.manual_seed(0)
    if version == "v1":
        model, options = models.deeplab_v1(CLASSES), ()
    else:
        model = models.deeplab_v2(CLASSES, "vgg16", "large_fov")
        options = ("--model", "v2", "--backbone", "vgg16", "--num-classes", str(CLASSES))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    looks = ("--scales", "0.5,1", "--flip", *options)
    assert main(segment_args(str(tmp_path / "weights.pth"), tmp_path, photograph, *looks)) == 0
    labels = data.read_labels(tmp_path / "photo_labels.png")
    pixels = torch.from_numpy(data.read_image(photograph).transpose(2, 0, 1).copy())
    found = model.predict(pixels, (0.5, 1), flip=True)
    assert np.array_equal(labels, found.labels[0].numpy())
    # The CRF is the model's own, except for the given options.
    refined = (*looks, "--crf", "--iterations", "10")
    assert main(segment_args(str(tmp_path / "weights.pth"), tmp_path, photograph, *refined)) == 0
    labels = data.read_labels(tmp_path / "photo_labels.png")
    assert np.array_equal(labels, found.refined[0].numpy())


def test_segment_in_tiles_with_another_preprocessing(model, weights, photograph, tmp_path, capsys):
    options = ("--tile", "44", "--preprocess", "caffe")
    assert main(segment_args(weights, tmp_path, photograph, *options)) == 0
    labels = data.read_labels(tmp_path / "photo_labels.png")
    pixels = torch.from_numpy(data.read_image(photograph).transpose(2, 0, 1).copy())
    twin = copy.deepcopy(model)
    twin.preprocess = models.Preprocess.caffe()
    assert np.array_equal(labels, twin.predict(pixels, tile=44).labels[0].numpy())
    assert main(segment_args(weights, tmp_path, photograph, "--tile", "31")) == 2
    (line,) = errors(capsys)
    assert "tile must exceed overlap" in line


def test_segment_refuses_looks_and_models_that_do_not_exist(weights, photograph, tmp_path, capsys):
    arguments = segment_args(weights, tmp_path, photograph)
    assert exit_code(*arguments, "--scales", "0,1") == 2
    assert exit_code(*arguments, "--scales", "large") == 2
    assert exit_code(*arguments, "--layout", "paper") == 2
    assert exit_code(*arguments, "--head", "aspp_s") == 2
    assert exit_code(*arguments, "--output-stride", "7") == 2
    first, second, *others, last = errors(capsys)
    assert "--scales" in first
    assert "--scales" in second
    told = "but the weights are those of deeplab_v3(num_classes=5, backbone='resnet50', layout="
    for line, option in zip(others, ("--layout paper", "--head aspp_s"), strict=True):
        assert line.endswith(f"{option}, {told}'torchvision')")
    assert "output_stride must be one of 8, 16, 32" in last


def test_segment_takes_the_model_from_the_weights(photograph, tmp_path):
    model = models.deeplab_v3(CLASSES, "resnet101")
    torch.save(model.state_dict(), tmp_path / "paper.pth")
    options = ("--output-stride", "8")
    assert main(segment_args(str(tmp_path / "paper.pth"), tmp_path, photograph, *options)) == 0
    labels = data.read_labels(tmp_path / "photo_labels.png")
    pixels = torch.from_numpy(data.read_image(photograph).transpose(2, 0, 1).copy())
    expected = models.set_output_stride(model, 8).predict(pixels).labels[0]
    assert np.array_equal(labels, expected.numpy())


def test_segment_goes_on_after_a_bad_image(weights, photograph, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    images = (str(broken), str(tmp_path / "missing.png"), photograph)
    assert main(segment_args(weights, out, *images)) == 2
    captured = capsys.readouterr()
    assert captured.out == "1 of 3 images done\n"
    first, second = captured.err.splitlines()
    assert "broken.jpg: not an image" in first
    assert "missing.png: No such file" in second
    assert (out / "photo_labels.png").exists()


def test_segment_does_not_overwrite_within_a_run(weights, photograph, tmp_path, capsys):
    twin = tmp_path / "elsewhere" / "photo.png"
    twin.parent.mkdir()
    data.write_image(twin, np.zeros((9, 9, 3), np.uint8))
    assert main(segment_args(weights, tmp_path / "out", photograph, str(twin))) == 2
    (line,) = errors(capsys)
    assert f"already holds the labels of {photograph}" in line
    assert data.read_labels(tmp_path / "out" / "photo_labels.png").shape == (33, 48)


def test_segment_without_usable_weights(weights, photograph, tmp_path, capsys):
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    assert main(segment_args(str(tmp_path / "none.pth"), tmp_path, photograph)) == 2
    (line,) = errors(capsys)
    assert line.startswith(f"atrousx segment: --weights {tmp_path}/none.pth: ")
    assert main(segment_args(str(text), tmp_path, photograph)) == 2
    (line,) = errors(capsys)
    assert "text.pth" in line
    assert main([*segment_args(weights, tmp_path, photograph), "--ema"]) == 2
    (line,) = errors(capsys)
    assert "random.pth holds no average (EMA) of the weights, but the weights alone" in line
    assert main([*segment_args(weights, tmp_path, photograph), "--num-classes", "7"]) == 2
    (line,) = errors(capsys)
    assert "--num-classes 7, but the weights are those of deeplab_v3(num_classes=5, " in line
    # ImageNet weights fit the backbone, but would leave the classifier random.
    imagenet = tmp_path / "imagenet.pth"
    state = torch.load(weights, weights_only=True)
    state = {k.removeprefix("backbone."): v for k, v in state.items() if "backbone." in k}
    torch.save({**state, "fc.weight": torch.zeros(1, 2048), "fc.bias": torch.zeros(1)}, imagenet)
    assert main(segment_args(str(imagenet), tmp_path, photograph)) == 2
    (line,) = errors(capsys)
    assert "(recognised as resnet) are not those of a whole DeepLab" in line


def test_segment_where_out_is_a_file(weights, photograph, capsys):
    assert main(segment_args(weights, Path(photograph), photograph)) == 2
    (line,) = errors(capsys)
    assert "--out" in line


def test_progress_is_drawn_on_terminals_only(capsys, monkeypatch):
    def two_images() -> str:
        progress = Progress(2)
        progress.step()
        progress.report("the second is broken")
        progress.step()
        progress.close()
        return capsys.readouterr().err

    assert two_images() == "the second is broken\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar, wipe = "#" * 15 + "." * 15, "\r\x1b[K"
    shown = two_images()
    assert f"\r[{bar}] 1/2{wipe}the second is broken\n\r[{bar}] 1/2" in shown
    assert shown.endswith(f"[{'#' * 30}] 2/2{wipe}")


# --- refine


def two_halves(tmp_path: Path, offset: int) -> tuple[str, str]:
    """Writes a black and white photograph, and labels whose border is ``offset`` pixels off."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30 + offset :] = 15
    labels[:3, :3] = 255
    data.write_image(tmp_path / "halves.png", image)
    data.write_labels(tmp_path / "halves_labels.png", labels)
    return str(tmp_path / "halves.png"), str(tmp_path / "halves_labels.png")


def test_refine_moves_the_border_onto_the_edge(tmp_path, capsys):
    image, labels = two_halves(tmp_path, offset=6)
    out = tmp_path / "new" / "refined.png"
    assert main(["refine", image, labels, "--out", str(out), "--device", "cpu"]) == 0
    refined = data.read_labels(out)
    expected = np.zeros((40, 60), np.uint8)
    expected[:, 30:] = 15
    assert np.array_equal(refined, expected)
    overlay = data.read_image(out.with_name("refined_overlay.png"))
    assert np.array_equal(overlay, data.overlay(data.read_image(image), refined))
    assert "10.0% of the labelled pixels changed" in capsys.readouterr().out


def test_label_logits_by_hand():
    labels = torch.tensor([[0, 2, -1]])
    probabilities = refine.label_logits(labels, 3, 0.7).exp()
    expected = torch.tensor([[[0.7, 0.15, 1 / 3]], [[0.15, 0.15, 1 / 3]], [[0.15, 0.7, 1 / 3]]])
    torch.testing.assert_close(probabilities, expected)


def test_refine_with_labels_of_another_size(tmp_path, photograph, capsys):
    _, labels = two_halves(tmp_path, 0)
    out = str(tmp_path / "out.png")
    assert main(["refine", photograph, labels, "--out", out]) == 2
    (line,) = errors(capsys)
    assert "is 60x40" in line
    assert "is 48x33" in line
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "out.jpg"], "--out must name a .png file"),
        (["--labels-confidence", "0.4"], "--labels-confidence must lie between 1/2 and 1"),
        (["--labels-confidence", "1"], "--labels-confidence must lie between 1/2 and 1"),
        (["--bilateral-sigma-rgb", "-1"], "bilateral_sigma_rgb"),
        (["--iterations", "few"], "--iterations"),
        (["--bilateral-sigma-rgb", "nan"], "bilateral_sigma_rgb"),
        (["--bilateral-sigma-rgb", "1e-30"], ""),
        (["--out", "/dev/null/out.png"], "cannot make the folder /dev/null"),
    ],
)
def test_refine_with_a_bad_option(options, message, tmp_path, capsys):
    image, labels = two_halves(tmp_path, 0)
    out = str(tmp_path / "out.png")
    assert exit_code("refine", image, labels, "--out", out, *options) == 2
    (line,) = errors(capsys)
    assert message in line


def test_refine_with_one_known_label(tmp_path, photograph, capsys):
    labels = tmp_path / "labels.png"
    data.write_labels(labels, np.full((33, 48), [3] * 40 + [9] * 8, np.uint8))
    out = ["--out", str(tmp_path / "out.png")]
    assert main(["refine", photograph, str(labels), *out, "--unknown", "9"]) == 2
    (line,) = errors(capsys)
    assert "must hold at least two labels besides 9, found 1" in line


def test_refine_with_a_missing_file(tmp_path, photograph, capsys):
    out = str(tmp_path / "out.png")
    assert main(["refine", photograph, str(tmp_path / "none.png"), "--out", out]) == 2
    (line,) = errors(capsys)
    assert "none.png: No such file" in line


# --- info and the rest


def test_info_as_a_module():
    command = [sys.executable, "-m", "atrousx", "info"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["atrousx"].strip() == atrousx.__version__
    assert torch.__version__ in rows["torch"]
    assert rows["CPU kernels"].split(",")[0].strip() in ("portable", "avx2", "avx512")
    assert set(rows) >= {"CUDA kernels", "GPU"}


def test_unknown_command_is_one_line(capsys):
    assert exit_code("paint") == 2
    (line,) = errors(capsys)
    assert "paint" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_asked_for_where_there_is_none(tmp_path, capsys):
    image, labels = two_halves(tmp_path, 0)
    arguments = ["refine", image, labels, "--out", str(tmp_path / "o.png"), "--device", "cuda"]
    assert main(arguments) == 2
    (line,) = errors(capsys)
    assert "no GPU" in line
