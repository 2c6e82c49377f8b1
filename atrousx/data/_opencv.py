"""Imports OpenCV only when an image is first read, written or drawn on."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch.utils.data import get_worker_info


class OpenCVMissing(ImportError):
    """OpenCV cannot be imported; the message says why and what to install."""


def opencv() -> ModuleType:
    """Returns the module ``cv2``.

    Raises:
        OpenCVMissing: OpenCV is not installed or does not load.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise OpenCVMissing(
            f"pictures need OpenCV, which cannot be imported ({reason}): "
            "pip install opencv-python, or opencv-python-headless on a server"
        ) from error


def one_thread_in_workers() -> None:
    """Makes OpenCV use one thread if this process is a worker of a DataLoader.

    The workers already use every core. The main process keeps the number of threads that the user
    has set.
    """
    if get_worker_info() is not None:
        opencv().setNumThreads(0)
