"""The generated scenes, made once for all tests of training."""

import pytest

from tests.training.scenes import make_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"))
