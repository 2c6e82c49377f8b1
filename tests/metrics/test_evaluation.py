"""Evaluation of a model on a dataset, in one process and in several."""

import math
import threading

import numpy as np
import pytest
import torch

import atrousx
from atrousx import data
from atrousx.metrics import ConfusionMatrix, Measures, evaluate
from tests.metrics.pictures import CLASSES, Item, Pictures, Tiny, pictures


def expected(model, dataset, **options):
    """The confusion matrix from predict, image by image."""
    found = ConfusionMatrix(dataset.num_classes, dataset.ignore_index)
    for item in dataset:
        image = torch.from_numpy(item.image).permute(2, 0, 1)
        predicted = model.predict(image, **options)
        labels = predicted.labels if predicted.refined is None else predicted.refined
        found.update(labels[0], torch.from_numpy(item.labels))
    return found.matrix


@pytest.mark.parametrize(
    "options",
    [{}, {"scales": (0.5, 1.0)}, {"flip": True}, {"tile": 44}],
    ids=["plain", "scales", "flip", "tiles"],
)
def test_equals_predict_image_by_image(options):
    model, dataset = Tiny(), pictures()
    found = evaluate(model, dataset, **options)
    assert torch.equal(found.labels.confusion.matrix, expected(model, dataset, **options))
    assert found.refined is None
    assert found.images == 7
    assert found.mean_iou() == found.labels.confusion.mean_iou()


def test_measures_before_and_after_the_crf():
    model, dataset = Tiny(), pictures(3)
    crf = atrousx.DenseCRF(CLASSES, iterations=2)
    found = evaluate(model, dataset, crf=crf, boundary=True, trimap_widths=(1, 2))
    assert torch.equal(found.labels.confusion.matrix, expected(model, dataset))
    assert torch.equal(found.refined.confusion.matrix, expected(model, dataset, crf=crf))
    assert found.final is found.refined
    for measures in (found.labels, found.refined):
        assert 0 < measures.boundary.mean_iou() < 1
        assert not measures.trimap.mean_iou().isnan().any()
    model.crf = crf
    own = evaluate(model, dataset, crf=True)
    assert torch.equal(own.refined.confusion.matrix, found.refined.confusion.matrix)


def test_the_plain_way_stores_no_full_logits(monkeypatch):
    model = Tiny()
    monkeypatch.setattr(model, "predict", None)
    monkeypatch.setattr(model, "forward", None)
    assert evaluate(model, pictures(1)).images == 1


def test_modes_and_random_numbers_stay():
    model = Tiny()
    model.train()
    model.layer.eval()
    state = torch.get_rng_state()
    evaluate(model, pictures(2))
    assert (model.training, model.layer.training, model.noise.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), state)


def test_results_are_passed_on_in_order():
    dataset, seen, steps = pictures(3), [], []
    found = evaluate(
        Tiny(),
        dataset,
        progress=lambda: steps.append(len(seen)),
        on_result=lambda index, item, labels: seen.append((index, item, labels.final)),
    )
    assert steps == [1, 2, 3]
    again = Measures(CLASSES)
    for place, (index, item, labels) in enumerate(seen):
        assert index == place
        assert item is dataset[place]
        again.update(labels, torch.from_numpy(item.labels))
    assert torch.equal(again.confusion.matrix, found.labels.confusion.matrix)


def test_workers_read_the_same():
    model, dataset = Tiny(), pictures(5)
    alone, helped = (evaluate(model, dataset, workers=number) for number in (0, 2))
    assert torch.equal(alone.labels.confusion.matrix, helped.labels.confusion.matrix)


class Broken(Pictures):
    def __getitem__(self, index):
        raise data.ImageError("two.png: not an image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_comes_as_it_is(workers):
    with pytest.raises(data.ImageError, match=r"^two\.png: not an image$"):
        evaluate(Tiny(), Broken(pictures(1)), workers=workers)


class Locked(Exception):
    """An error that no other process can get."""

    def __init__(self, name):
        super().__init__(f"{name} is locked")
        self.lock = threading.Lock()


class Guarded(Pictures):
    def __getitem__(self, index):
        raise Locked("two.png")


@pytest.mark.parametrize(("workers", "error"), [(0, Locked), (1, RuntimeError)])
def test_an_error_that_cannot_leave_a_worker_does_not_hang(workers, error):
    with pytest.raises(error, match=r"two\.png is locked$"):
        evaluate(Tiny(), Guarded(pictures(1)), workers=workers)


def item(labels):
    return Pictures([Item("one", np.zeros((8, 9, 3), np.uint8), np.array(labels, np.uint8))])


@pytest.mark.parametrize(
    ("model", "dataset", "error", "message"),
    [
        (Tiny(7), pictures(1), ValueError, "model has 7 classes, but the dataset has 4"),
        (Tiny(3), pictures(1), ValueError, "model has 3 classes, but the dataset has 4"),
        (torch.nn.Identity(), pictures(1), TypeError, "model must be a DeepLab .* got Identity"),
        (Tiny(), item([[0]]), ValueError, r"one: the labels are \[1, 1\], but the image is \[8, 9"),
        (Tiny(), item([[9] * 9] * 8), ValueError, "one: true must hold labels from 0 to 3, got 9"),
    ],
)
def test_bad_input_is_named(model, dataset, error, message):
    with pytest.raises(error, match=message):
        evaluate(model, dataset)


def test_classes_are_compared_with_several_scales_too():
    with pytest.raises(ValueError, match="model has 7 classes, but the dataset has 4"):
        evaluate(Tiny(7), pictures(1), flip=True)


def test_an_empty_data_set_and_one_without_truth_have_no_measures():
    assert math.isnan(evaluate(Tiny(), Pictures()).mean_iou())
    assert math.isnan(evaluate(Tiny(), item([[255] * 9] * 8)).mean_iou())


WORLDS = (3, 2)


def _rank(rank, folder):
    """Evaluates in all three processes, then in the first two."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world
            )
            torch.save(_measured(), f"{folder}/{world}-{rank}")
            torch.distributed.destroy_process_group()


def _measured():
    """Returns number of images, images of this process and all counts."""
    torch.manual_seed(0)
    seen = []
    found = evaluate(
        Tiny(),
        pictures(),
        boundary=True,
        trimap_widths=(1, 3),
        on_result=lambda index, *_: seen.append(index),
    )
    measures = found.labels
    counts = (measures.confusion.matrix, measures.boundary.unions, measures.trimap.counts)
    return found.images, seen, counts


def test_processes_count_each_image_once(tmp_path):
    """Seven images divide neither by two nor by three."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=max(WORLDS))
    *_, expected = _measured()
    for world in WORLDS:
        for rank in range(world):
            images, seen, counts = torch.load(tmp_path / f"{world}-{rank}")
            assert images == 7
            assert seen == list(range(rank, 7, world))
            assert all(map(torch.equal, counts, expected))


@pytest.mark.slow
def test_a_whole_deeplab():
    model = atrousx.models.deeplab_v3(num_classes=CLASSES, backbone="resnet50")
    random = np.random.default_rng(0)
    dataset = Pictures(
        Item(str(n), random.integers(256, size=(33, 33, 3), dtype=np.uint8), labels)
        for n, labels in enumerate(random.integers(CLASSES, size=(2, 33, 33), dtype=np.uint8))
    )
    found = evaluate(model, dataset).labels.confusion.matrix
    assert torch.equal(found, expected(model, dataset))
