"""A progress bar on standard error. It is silent if standard error is not a terminal."""

from __future__ import annotations

import sys

WIDTH = 30


class Progress:
    """Counts ``total`` steps. Messages printed with ``report`` do not overwrite the bar."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = total > 1 and sys.stderr.isatty()
        self._draw()

    def step(self) -> None:
        self._done += 1
        self._draw()

    def report(self, message: str) -> None:
        self._clear()
        print(message, file=sys.stderr)
        self._draw()

    def close(self) -> None:
        self._clear()
        self._shown = False

    def _draw(self) -> None:
        if self._shown:
            filled = WIDTH * self._done // self._total
            bar = "#" * filled + "." * (WIDTH - filled)
            print(f"\r[{bar}] {self._done}/{self._total}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
