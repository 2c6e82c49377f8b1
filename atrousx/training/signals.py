"""Lets a run end in order when the system or a person asks it to."""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def noticed_signals(notice: Callable[[int], None]) -> Iterator[None]:
    """Calls ``notice`` with the number of SIGTERM or SIGINT, in place of ending the process."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        notice(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
