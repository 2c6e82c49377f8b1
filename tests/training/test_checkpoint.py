"""Checkpoints: whole or absent, the last few and the best, safe to load."""

import pytest
import torch

from atrousx.training.checkpoint import BEST, CheckpointError, Checkpoints, read, write_atomically

CONTENT = {"training": {"iteration": 1}, "model": {"weight": torch.arange(5000.0)}}


def test_the_last_ones_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.newest() is None
    for iteration in (5, 10, 100):
        state = {"training": {"iteration": iteration}}
        checkpoints.save(iteration, state, is_best=iteration == 5)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [BEST, "iteration_00000010.pt", "iteration_00000100.pt"]
    assert read(tmp_path / "new" / BEST)["training"]["iteration"] == 5
    assert checkpoints.newest()["training"]["iteration"] == 100


def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, CONTENT)
    path = checkpoints.save(2, CONTENT)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"iteration_00000002\.pt: cannot be read"):
        assert checkpoints.newest()["training"]["iteration"] == 1
    checkpoints.files()[0].write_bytes(b"")
    message = "no checkpoint can be read"
    with (
        pytest.warns(UserWarning, match="cannot be"),
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoints.newest()


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    path = tmp_path / "evil.pt"
    torch.save({"training": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt: cannot be read"):
        read(path)
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt: no checkpoint of a training"):
        read(path)


def test_every_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Each write to the file fails once, like on a disk that becomes full."""
    path = tmp_path / "file.pt"
    write_atomically(path, CONTENT)
    before = path.read_bytes()
    changed = {**CONTENT, "training": {"iteration": 2}}
    real, writes = open, 0

    class Failing:
        def __init__(self, file, left):
            self.file, self.left = file, left

        def write(self, data):
            nonlocal writes
            writes += 1
            if writes > self.left:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def save_with(left):
        """Returns the error of saving where only so many writes succeed; None without one."""
        nonlocal writes
        writes = 0
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", lambda *args: Failing(real(*args), left))
            try:
                write_atomically(path, changed)
            except CheckpointError as error:
                return str(error)
        return None

    left = 0
    while (error := save_with(left)) is not None:
        assert "file.pt: cannot be written: No space left on device" in error
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        left += 1
    assert left > 3
    assert read(path)["training"]["iteration"] == 2


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
