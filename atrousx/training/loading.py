"""Passes the errors of a DataLoader's workers to the main process as they are.

A DataLoader would put the traceback of its worker before the message.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, default_collate


class Readable(Dataset[Any]):
    """Reads an item, or catches why it could not be read."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as error:
            return error


def collate_readable(items: list[Any]) -> Any:
    """Returns the batch, or the first error."""
    for item in items:
        if isinstance(item, Exception):
            return item
    return default_collate(items)
