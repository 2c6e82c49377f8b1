"""``atrousx refine`` on scores and folders. test_cli tests labels of single files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from atrousx import data
from atrousx.cli import main

OPTIONS = ["--device", "cpu", "--iterations", "3", "--bilateral-sigma-rgb", "20"]


def scene(folder: Path, name: str, labels: int = 3) -> tuple[Path, np.ndarray]:
    """Writes a noisy photograph of stripes to folder/photos; its logits [L, 8, 12] have half its
    size."""
    random = np.random.default_rng(len(name))
    stripes = np.arange(24) * labels // 24
    image = (stripes * 70)[None, :, None] + random.integers(0, 40, (16, 24, 3))
    (folder / "photos").mkdir(exist_ok=True)
    photo = folder / "photos" / f"{name}.jpg"
    data.write_image(photo, image.astype(np.uint8))
    near = stripes[None, None, ::2] == np.arange(labels)[:, None, None]
    return photo, (near + random.normal(0, 1, (labels, 8, 12))).astype(np.float32)


def refined_by_hand(photo: Path, scores: np.ndarray) -> np.ndarray:
    image = torch.from_numpy(data.read_image(photo)).permute(2, 0, 1)[None]
    logits = atrousx.ops.upsample_bilinear2d(torch.from_numpy(scores)[None], size=(16, 24))
    crf = atrousx.DenseCRF(len(scores), iterations=3, bilateral_sigma_rgb=20.0)
    return crf(logits, image).argmax(1)[0].numpy()


@pytest.mark.parametrize("kind", ["logits.npy", "logits.npz", "probabilities.npy"])
def test_scores_are_refined(tmp_path, kind, capsys):
    photo, scores = scene(tmp_path, "one")
    path, out = tmp_path / kind, tmp_path / "out.png"
    options, written = list(OPTIONS), scores[None]
    if kind.startswith("probabilities"):
        options.append("--probabilities")
        written = torch.from_numpy(scores).softmax(0).numpy()
        scores = np.log(written)
    np.savez(path, scores=written) if path.suffix == ".npz" else np.save(path, written)
    assert main(["refine", str(photo), str(path), "--out", str(out), *options]) == 0
    assert np.array_equal(data.read_labels(out), refined_by_hand(photo, scores))
    assert (tmp_path / "out_overlay.png").exists()
    assert "pixels changed" in capsys.readouterr().out


def test_folders_of_scores_and_labels(tmp_path, capsys):
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    photo, scores = scene(tmp_path, "one")
    np.save(given / "one.npy", scores)
    scene(tmp_path, "three")
    labels = np.repeat([[0, 7]], 16, 0).repeat(12, 1).astype(np.uint8)
    data.write_labels(given / "three.png", labels)
    scene(tmp_path, "broken")
    (given / "broken.npy").write_bytes(b"no array")
    folders = ["refine", str(tmp_path / "photos"), str(given), "--out"]
    assert main([*folders, str(out), *OPTIONS]) == 2
    captured = capsys.readouterr()
    assert captured.out == "2 of 3 done\n"
    assert captured.err == f"atrousx refine: {given}/broken.npy: not an array that NumPy can read\n"
    assert np.array_equal(data.read_labels(out / "one.png"), refined_by_hand(photo, scores))
    assert set(np.unique(data.read_labels(out / "three.png"))) <= {0, 7}
    names = ["one.png", "one_overlay.png", "three.png", "three_overlay.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    # Results must not overwrite the inputs.
    (given / "broken.npy").unlink()
    assert main([*folders, str(given), *OPTIONS]) == 2
    assert "three.png is an input" in capsys.readouterr().err
    assert np.array_equal(data.read_labels(given / "three.png"), labels)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 17, 24), "scores.npy is 24x17, larger than {photo}, which is 24x16"),
        ((1, 8, 12), "scores.npy must have scores of 2 to 256 labels, found 1"),
        ((8, 12), "scores.npy: scores must be a floating array [labels, height, width]"),
    ],
)
def test_scores_of_another_shape(tmp_path, capsys, shape, message):
    photo, _ = scene(tmp_path, "one")
    path, out = tmp_path / "scores.npy", tmp_path / "out.png"
    np.save(path, np.zeros(shape, np.float32))
    assert main(["refine", str(photo), str(path), "--out", str(out)]) == 2
    assert message.format(photo=photo) in capsys.readouterr().err
    assert not out.exists()


def test_an_npz_of_several_arrays(tmp_path, capsys):
    photo, scores = scene(tmp_path, "one")
    np.savez(tmp_path / "two.npz", a=scores, b=scores)
    out = ["--out", str(tmp_path / "out.png")]
    assert main(["refine", str(photo), str(tmp_path / "two.npz"), *out]) == 2
    assert "two.npz: an .npz of scores must hold one array, found a, b" in capsys.readouterr().err


def test_folders_that_do_not_belong_together(tmp_path, capsys):
    photo, scores = scene(tmp_path, "one")
    np.save(tmp_path / "two.npy", scores)
    out = ["--out", str(tmp_path / "out")]
    assert main(["refine", str(tmp_path / "photos"), str(tmp_path), *out]) == 2
    assert f"IMAGE {photo.parent}: no photograph for two.npy" in capsys.readouterr().err
    assert main(["refine", str(photo), str(tmp_path), *out]) == 2
    assert f"IMAGE {photo}: Not a directory" in capsys.readouterr().err
