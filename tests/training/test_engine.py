"""The training loop: it learns, repeats and continues to the bit, and stops with a sentence."""

import os
import pickle
import signal

import pytest
import torch
from torch import nn

from atrousx import backend, models
from atrousx.training import RECIPES, JsonLines, Stopped, TrainingError, Watcher, build_network
from atrousx.training.checkpoint import read
from atrousx.training.watch import read_log
from tests.training.scenes import RECIPE, V2, V3, opened, same, trainer_of, weights


@pytest.fixture
def run(scenes, tmp_path):
    """Trains by a recipe and returns the trainer."""

    def trained(recipe=RECIPE, name="run", **options):
        trainer = trainer_of(recipe, scenes, tmp_path / name, **options)
        trainer.run()
        return trainer

    return trained


VARIANTS = {
    "v1": RECIPE,
    "v1, average": RECIPE.replace(ema=0.9),
    "v1, bfloat16": RECIPE.replace(precision="bfloat16"),
    "v1, ohem": RECIPE.replace(loss="ohem", class_weights="median_frequency", accumulate=2),
    "v2": V2,
    "v3, recomputed": V3.replace(recompute=True),
    "v3, aux": V3.replace(layout="torchvision", aux=True, aux_multiplier=10, channels_last=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_continues_to_the_same_bits(scenes, tmp_path, run, name):
    recipe = VARIANTS[name].replace(iterations=3)
    whole = run(recipe, "whole")
    first = trainer_of(recipe, scenes, tmp_path / "halves", save_every=1)
    batches = first._batches

    def two_batches():
        for count, batch in enumerate(batches()):
            if count == 2:
                return
            yield batch

    first._batches = two_batches
    first.run()
    state = first.checkpoints.newest()
    assert state["training"]["iteration"] == 2
    second = trainer_of(recipe, scenes, tmp_path / "halves")
    second.load_state_dict(state)
    second.run()
    assert second.iteration == 3
    assert same(weights(whole), weights(second))
    assert same(whole.result.state_dict(), second.result.state_dict())


def test_two_runs_and_any_workers_give_the_same_bits(run):
    recipe = RECIPE.replace(iterations=2)
    assert same(weights(run(recipe, "one")), weights(run(recipe, "two", workers=2)))


def test_micro_batches_give_the_same_step(run):
    """With frozen normalisation, whose statistics would be those of a micro-batch."""
    recipe = V3.replace(iterations=2, freeze_bn=True)
    one, two = run(recipe, "one"), run(recipe.replace(accumulate=2), "two")
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-4, atol=1e-6)


def test_it_learns(run):
    losses = []

    class Losses(Watcher):
        def event(self, event, progress, values):
            losses.append(values["loss"])

    run(RECIPE.replace(iterations=30), log_every=1, watchers=[Losses()])
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_log_checkpoints_and_the_best(scenes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    recipe = RECIPE.replace(iterations=3)
    trainer = trainer_of(
        recipe, scenes, out, validates=True, evaluate_every=2, watchers=[JsonLines(out, 0)]
    )
    found = trainer.run()
    log = read_log(out)
    assert [line["iteration"] for line in log if line["event"] == "loss"] == [1, 2, 3]
    evaluations = [line for line in log if line["event"] == "evaluation"]
    assert [line["iteration"] for line in evaluations] == [2, 3]
    assert evaluations[-1]["mean_iou"] == pytest.approx(found.mean_iou())
    best = max(evaluations, key=lambda line: (line["mean_iou"], line["iteration"]))
    assert read(out / "best.pt")["training"]["iteration"] == best["iteration"]
    JsonLines(out, 2)  # a run that goes on after iteration 2
    assert [line["iteration"] for line in read_log(out)] == [1, 2, 2]


def test_from_weights_builds_the_trained_network(run, tmp_path):
    recipe = RECIPES["v3_os8"].replace(
        width=0.05, crop=(33, 33), iterations=1, batch_size=2, multi_grid=(1, 2, 1)
    )
    trainer = run(recipe)
    model = models.from_weights(trainer.checkpoints.files()[-1]).eval()
    image = torch.rand(1, 3, 33, 41)
    assert torch.equal(model(image)["out"], trainer.result.eval()(image)["out"])
    assert model.backbone.layer4[1].conv2.dilation == (8, 8)


def test_preprocessing_of_the_start_is_kept(scenes, tmp_path):
    """v2 from ImageNet's ResNet sees photographs as torchvision does, later too."""
    recipe = V2.replace(backbone="resnet101", iterations=1)
    source = models.deeplab_v2(7, width=0.05).backbone.state_dict()
    dataset = opened(scenes)
    model, report = build_network(recipe, dataset.num_classes, source)
    assert report.source == "resnet"
    trainer = trainer_of(recipe, scenes, tmp_path)
    trainer.model.preprocess = model.preprocess
    trainer.checkpoints.save(1, trainer.state_dict())
    again = models.from_weights(trainer.checkpoints.files()[-1])
    assert not again.preprocess.bgr
    assert torch.equal(again.preprocess.std, models.Preprocess.imagenet().std)


def test_another_recipe_or_other_classes_are_refused(scenes, tmp_path):
    trainer = trainer_of(RECIPE, scenes, tmp_path)
    state = trainer.state_dict()
    other = trainer_of(RECIPE.replace(lr=0.5), scenes, tmp_path)
    with pytest.raises(TrainingError, match=r"another recipe: lr was 0\.005 and is 0\.5"):
        other.load_state_dict(state)
    with pytest.raises(TrainingError, match="data set with other classes"):
        trainer.load_state_dict({**state, "classes": ["background"]})


def test_a_loss_that_is_no_number_ends_the_run(scenes, tmp_path):
    trainer = trainer_of(RECIPE, scenes, tmp_path, save_every=1, log_every=1)

    def poison(module, inputs, output):
        return [o * float("nan") for o in output] if trainer.iteration == 1 else output

    trainer.model.backbone.register_forward_hook(poison)
    with pytest.raises(TrainingError, match=r"the loss is nan at iteration 2.*iteration_00000001"):
        trainer.run()
    assert [path.name for path in trainer.checkpoints.files()] == ["iteration_00000001.pt"]


def test_weights_that_are_no_numbers_are_not_saved(scenes, tmp_path):
    """The loss is computed before the step that breaks the weights."""
    trainer = trainer_of(RECIPE, scenes, tmp_path, save_every=1)
    step = trainer.optimizer.step

    def breaking_step():
        step()
        if trainer.iteration == 1:
            with torch.no_grad():
                trainer.model.classifier[-1].bias[0] = float("inf")

    trainer.optimizer.step = breaking_step
    with pytest.raises(TrainingError, match="a weight is not finite at iteration 2"):
        trainer.run()
    assert [path.name for path in trainer.checkpoints.files()] == ["iteration_00000001.pt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_checkpoint(scenes, tmp_path, number):
    class Sender(Watcher):
        def event(self, event, progress, values):
            if progress.iteration == 2:
                os.kill(os.getpid(), number)

    trainer = trainer_of(RECIPE, scenes, tmp_path, log_every=1, watchers=[Sender()])
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        trainer.run()
    # A worker of a pool of processes sends the exception to its parent.
    sent = pickle.loads(pickle.dumps(stopped.value))
    assert stopped.value.signal_number == sent.signal_number == number
    assert str(sent) == f"stopped by signal {int(number)}"
    assert read(trainer.checkpoints.files()[-1])["training"]["iteration"] == 2
    assert signal.getsignal(number) == handler


def test_the_recipes_backend_holds_during_the_run_only(scenes, tmp_path):
    seen = []

    class Seen(Watcher):
        def event(self, event, progress, values):
            seen.append(backend.get_backend())

    before = backend.get_backend()
    recipe = RECIPE.replace(backend="torch", iterations=1)
    trainer_of(recipe, scenes, tmp_path, watchers=[Seen()]).run()
    assert seen == ["torch"]
    assert backend.get_backend() == before


def test_frozen_normalisation_stays_frozen(run):
    trainer = run(V3.replace(freeze_bn=True, iterations=2))
    start, _ = build_network(trainer.recipe, trainer.dataset.num_classes)
    for name, value in start.state_dict().items():
        if "running" in name or ".bn" in name:
            assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trainer.model.modules())


def test_a_batch_that_does_not_divide_is_refused(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("atrousx.training.engine.rank_and_world", lambda: (0, 3))
    with pytest.raises(TrainingError, match=r"batch_size must be a multiple of 3 \(processes"):
        trainer_of(RECIPE, scenes, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"workers": -1}, "workers must not be negative"),
    ],
)
def test_wrong_options_are_named(scenes, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(RECIPE, scenes, tmp_path, **options)
