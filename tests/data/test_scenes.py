"""Generated scenes: their files, and the rules that decide the classes."""

import cv2
import numpy as np
import pytest
import torch

from atrousx.data import SCENE_CLASSES, VOC, DatasetError, generate_scenes, voc_palette
from atrousx.data._scene import draw_scene
from atrousx.metrics import ConfusionMatrix

BACKGROUND, WHEEL, PEBBLE, BOULDER, DAY_LAMP, NIGHT_LAMP, HEDGE = range(7)
SIDE = 161
UNITS = SIDE / 40 * np.array([0.8, 1.25])  # smallest and largest, in pixels


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene((SIDE, SIDE), np.random.default_rng((9, i))) for i in range(40)]


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_files_are_read_as_voc(tmp_path):
    steps = []
    generate_scenes(tmp_path, train=3, val=2, size=(64, 80), progress=lambda: steps.append(1))
    assert len(steps) == 5
    names = {split: VOC(tmp_path, split).names for split in ("train", "val", "trainval")}
    assert names["train"] == tuple(f"train_{i:06}" for i in range(3))
    assert names["val"] == tuple(f"val_{i:06}" for i in range(2))
    assert names["trainval"] == names["train"] + names["val"]
    dataset = VOC(tmp_path, "trainval")
    assert dataset.classes == SCENE_CLASSES
    assert dataset.check() == []
    file = cv2.imread(str(dataset.files(0).labels))
    assert np.array_equal(file[..., ::-1], voc_palette()[dataset[0].labels])


def test_a_seed_gives_the_same_files_and_another_seed_gives_others(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        generate_scenes(tmp_path / name, train=2, val=1, size=(64, 64), seed=seed)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert not [
        name for name in one if name.endswith((".jpg", ".png")) and one[name] == other[name]
    ]


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path):
    generate_scenes(tmp_path / "few", train=1, val=2, size=(64, 64))
    generate_scenes(tmp_path / "many", train=3, val=2, size=(64, 64))
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    pictures = [name for name in few if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 6
    assert all(few[name] == many[name] for name in pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train must not be negative, got -1"),
        ({"val": -2}, "val must not be negative, got -2"),
        ({"seed": -3}, "seed must not be negative, got -3"),
        ({"size": (63, 64)}, r"size must be height and width of at least 64, got \(63, 64\)"),
    ],
)
def test_numbers_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        generate_scenes(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_no_files_are_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match=f"{tmp_path}: must be empty"):
        generate_scenes(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DatasetError, match=r"mine\.txt: "):
        generate_scenes(tmp_path / "mine.txt")


def test_classes_are_all_there_and_none_is_rare(scenes):
    labels = np.stack([labels for _, labels in scenes])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert 0.6 < share[BACKGROUND] < 0.75
    assert (share[WHEEL : HEDGE + 1] > 0.01).all()
    assert 0.02 < share[255] < 0.15
    assert all(np.mean([(one == label).any() for one in labels]) > 0.4 for label in range(1, 7))
    assert share[: HEDGE + 1].sum() + share[255] == pytest.approx(1)


def test_labels_meet_only_in_borders(scenes):
    for _, labels in scenes:
        for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert not ((one != other) & (one != 255) & (other != 255)).any()


def areas(labels, label):
    """Areas, in pixels, of the objects of a class that lie in the scene wholly."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
    left, top, width, height, area = stats[1:].T
    whole = (left > 0) & (top > 0) & (left + width < SIDE) & (top + height < SIDE)
    # What others cover in part is not round.
    return area[whole & (abs(width - height) <= 1) & (area > 0.7 * width * height)]


def test_pebbles_and_boulders_differ_in_size_alone(scenes):
    pebbles, boulders = (
        np.concatenate([areas(labels, label) for _, labels in scenes])
        for label in (PEBBLE, BOULDER)
    )
    assert len(pebbles) > 100
    assert len(boulders) > 20
    smallest, largest = UNITS
    # A border takes one pixel at most inside.
    assert np.pi * (1.6 * smallest - 2) ** 2 < pebbles.min()
    assert pebbles.max() < np.pi * (2.2 * largest) ** 2
    assert np.pi * (4.3 * smallest - 2) ** 2 < boulders.min()
    assert boulders.max() < np.pi * (5.5 * largest) ** 2


def test_the_sky_decides_which_lamps_there_are(scenes):
    day = []
    for image, labels in scenes:
        kinds = {DAY_LAMP, NIGHT_LAMP} & set(np.unique(labels).tolist())
        assert len(kinds) == 1
        sky = image[: SIDE // 9].mean(2, dtype=np.float32)
        pattern = sky - cv2.blur(sky, (15, 15))
        # By day all rows of the sky are alike; by night dark and light change places.
        alike = pattern.mean(0).var() / pattern.var()
        assert (alike > 0.5) == (kinds == {DAY_LAMP}), alike
        day.append(kinds == {DAY_LAMP})
    assert 10 < sum(day) < 30


def test_lamps_are_far_from_the_sky(scenes):
    for _, labels in scenes:
        rows = np.nonzero((labels == DAY_LAMP) | (labels == NIGHT_LAMP))[0]
        assert rows.min() > 0.4 * SIDE


def test_colour_does_not_tell_the_class(scenes):
    """The best guess from the colour of a pixel alone, by a histogram."""
    bins = [(image.astype(int) // 16) @ (256, 16, 1) for image, _ in scenes]
    histogram = np.zeros((16**3, 256))
    for found, (_, labels) in zip(bins[:30], scenes, strict=False):
        np.add.at(histogram, (found, labels), 1)
    # Every class counts alike; so the background does not win everywhere.
    share = histogram[:, : HEDGE + 1] / histogram[:, : HEDGE + 1].sum(0)
    for guess in (histogram[:, : HEDGE + 1].argmax(1), share.argmax(1)):
        confusion = ConfusionMatrix(HEDGE + 1)
        for found, (_, labels) in zip(bins[30:], scenes[30:], strict=True):
            confusion.update(torch.from_numpy(guess[found]), torch.from_numpy(labels).long())
        assert confusion.mean_iou() < 0.2
