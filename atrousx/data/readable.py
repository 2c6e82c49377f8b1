"""Passes the errors of a DataLoader's workers to the main process as they are."""

from __future__ import annotations

import pickle
from typing import Any

from torch.utils.data import Dataset, get_worker_info


class Readable(Dataset[Any]):
    """Reads an item of a dataset, or returns the error that prevented it.

    The error travels to the main process as a value: a DataLoader would put the traceback of its
    worker before the message.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as error:
            return _portable(error)


def _portable(error: Exception) -> Exception:
    """Returns an error that can leave a worker; one that cannot would make the loader wait."""
    if get_worker_info() is None:
        return error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
