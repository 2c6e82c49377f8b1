"""The generated scenes, made once for all tests of training."""

import pytest
import torch

from tests.training.scenes import make_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
