"""``generate-scenes``, ``check-data``, and the options that name a dataset."""

import argparse
import re

import numpy as np
import pytest

from atrousx import data
from atrousx.cli import main
from atrousx.cli._dataset import add_dataset_options, chosen_dataset
from atrousx.cli._shared import CommandError
from tests.data import layouts


def test_generate_scenes_writes_what_check_data_reads(tmp_path, capsys):
    folder = str(tmp_path / "new" / "scenes")
    options = ["--train", "3", "--val", "2", "--size", "64x80", "--seed", "5"]
    assert main(["generate-scenes", folder, *options]) == 0
    assert capsys.readouterr().out == f"{folder}: 5 scenes\n"
    assert main(["check-data", "--format", "voc", folder, "--split", "trainval"]) == 0
    assert capsys.readouterr().out == "5 samples, 7 classes, 0 faults\n"
    data.generate_scenes(tmp_path / "same", train=1, val=0, size=(64, 80), seed=5)
    one, other = data.VOC(folder)[0], data.VOC(tmp_path / "same")[0]
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "64"], "argument --size: height and width, such as 375x500, got 64"),
        (["--size", "32x64"], r"size must be height and width of at least 64, got \(32, 64\)"),
        (["--train", "-1"], "train must not be negative, got -1"),
        ([], "must be empty, so that no other files are overwritten"),
    ],
)
def test_generate_scenes_refuses(tmp_path, capsys, options, message):
    (tmp_path / "file").touch()
    try:
        code = main(["generate-scenes", str(tmp_path), *options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_check_data_lists_every_fault(tmp_path, capsys):
    root = layouts.write_folder(tmp_path)
    for name in ("one", "three"):
        (root / "images" / f"{name}.png").write_bytes(b"")
    assert main(["check-data", "--format", "folder", str(root)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "3 samples, 3 classes, 2 faults\n"
    assert printed.err.splitlines() == [
        f"atrousx check-data: {root}/images/{name}.png: not an image that OpenCV can read"
        for name in ("one", "three")
    ]
    assert main(["check-data", "--format", "folder", str(root), "--split", "none"]) == 2
    assert "there is neither none.txt nor" in capsys.readouterr().err


def parsed(*arguments, **defaults):
    parser = argparse.ArgumentParser()
    add_dataset_options(parser, **defaults)
    return parser.parse_args(arguments)


def test_options_name_two_splits(tmp_path):
    root = str(layouts.write_voc(tmp_path))
    args = parsed(root, "--format", "voc", split="train_aug", val_split="val")
    assert chosen_dataset(args).names == layouts.NAMES
    assert chosen_dataset(args, "val_split").names == ("three",)
    given = ["--split", "val", "--val-split", "train"]
    args = parsed(root, "--format", "voc", *given, split="train_aug", val_split="val")
    assert chosen_dataset(args).names == ("three",)
    assert chosen_dataset(args, "val_split").names == ("one", "two")


def test_options_shift_labels(tmp_path):
    root = str(layouts.write_folder(tmp_path))
    plain, shifted = (
        chosen_dataset(parsed(root, "--format", "folder", *more))[0].labels
        for more in ([], ["--reduce-zero-label"])
    )
    assert np.array_equal(shifted, np.where(plain % 255 == 0, 255, plain - 1))


def test_options_name_a_dataset_that_cannot_be_opened(tmp_path):
    args = parsed(str(tmp_path), "--format", "cityscapes")
    with pytest.raises(CommandError, match="leftImg8bit/train: No such file or directory"):
        chosen_dataset(args)
    layouts.write_cityscapes(tmp_path)
    args = parsed(str(tmp_path), "--format", "cityscapes", "--split", "val", "--reduce-zero-label")
    with pytest.raises(CommandError, match="reduce_zero_label is not for cityscapes"):
        chosen_dataset(args)
