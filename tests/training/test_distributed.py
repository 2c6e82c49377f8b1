"""Two processes give the weights of one, to rounding; each test starts real processes."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from atrousx import models
from atrousx.training.checkpoint import read
from tests.training.scenes import V3, make_scenes, trainer_of, weights

WORLD = 2
# Normalisation is frozen: its statistics would be those of one process's images. The networks have
# no dropout, which would differ from process to process.
RECIPES = {
    "v3": V3.replace(freeze_bn=True, batch_size=4, iterations=2),
    "v3, unused auxiliary head": V3.replace(
        freeze_bn=True, batch_size=4, iterations=1, aux=True, aux_weight=0.0
    ),
    "v3, two micro-batches": V3.replace(
        freeze_bn=True, batch_size=4, iterations=2, accumulate=2, class_weights="median_frequency"
    ),
}


def start(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    url = f"file://{rendezvous}"
    distributed.init_process_group("gloo", init_method=url, rank=rank, world_size=WORLD)


def in_two_processes(function, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(function, (f"{folder}/rendezvous", *arguments), nprocs=WORLD)


def train_all(rank, rendezvous, scenes, out):
    start(rank, rendezvous)
    for name, recipe in RECIPES.items():
        folder = Path(out) / name
        trainer = trainer_of(recipe, Path(scenes), folder, validates=name == "v3")
        trainer.run()
        # Every process has the same weights, to the bit.
        for value in weights(trainer).values():
            first = value.clone()
            distributed.broadcast(first, 0)
            assert torch.equal(first, value)
        distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path):
    """The data set has 6 images, and each of them another number of labelled pixels."""
    scenes = make_scenes(tmp_path / "scenes")
    in_two_processes(train_all, str(scenes), str(tmp_path / "two"))
    for name, recipe in RECIPES.items():
        alone = trainer_of(recipe.replace(accumulate=1), scenes, tmp_path / "one" / name)
        alone.run()
        (last,) = alone.checkpoints.files()
        both = read(tmp_path / "two" / name / last.name)["model"]
        for key, value in weights(alone).items():
            torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-6)


def losses(rank, rendezvous, found):
    start(rank, rendezvous)
    torch.manual_seed(0)
    network = models.deeplab_v1(3, width=0.05)
    images, target = torch.randn(4, 3, 33, 33), torch.randint(3, (4, 33, 33))
    target[1:] = 255
    own = slice(2 * rank, 2 * rank + 2)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parallel = DistributedDataParallel(network)
    parallel(images[own], target[own], across_processes=True).backward()
    if rank == 0:
        gradients = {name: p.grad for name, p in network.named_parameters()}
        torch.save({"gradients": gradients, "state": network.state_dict()}, f"{found}/ddp.pt")
    with pytest.warns(UserWarning, match=r"parallel\(images, target\)"):
        network.loss(images[own], target[own])
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_wrapped_model_returns_the_loss_of_all_images(tmp_path):
    """Only the first process has labelled pixels, so means over each process's would differ."""
    in_two_processes(losses, str(tmp_path))
    saved = torch.load(tmp_path / "ddp.pt")
    torch.manual_seed(0)
    network = models.deeplab_v1(3, width=0.05)
    images, target = torch.randn(4, 3, 33, 33), torch.randint(3, (4, 33, 33))
    target[1:] = 255
    network.load_state_dict(saved["state"])
    network.eval().loss(images, target).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(saved["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_process_alone_needs_no_group(tmp_path):
    network = models.deeplab_v1(3, width=0.05).eval()
    images, target = torch.randn(1, 3, 33, 33), torch.randint(3, (1, 33, 33))
    expected = network.loss(images, target)
    torch.testing.assert_close(network(images, target, across_processes=True), expected)
