"""Packages that some tests need, which a machine with a GPU may lack: without hypothesis its tests
are skipped, and all others in their files run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:

    def given(*_: Any, **__: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef]
        def skipped(test: Any) -> Any:
            # A function of no arguments: pytest would look for fixtures of the drawn ones' names.
            @pytest.mark.skip(reason="needs hypothesis")
            def stand_in() -> None: ...

            stand_in.__name__, stand_in.__doc__ = test.__name__, test.__doc__
            return stand_in

        return skipped

    def settings(*_: Any, **__: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef]
        return lambda test: test

    class _Strategies:
        """Whatever is asked of it is itself: strategies that are made, but never drawn from."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *_: Any, **__: Any) -> Any:
            return self

    st: Any = _Strategies()  # type: ignore[no-redef]

__all__ = ["given", "settings", "st"]
