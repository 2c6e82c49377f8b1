"""Optional packages of some tests, which a machine with a GPU may lack. Without hypothesis its
tests are skipped; all other tests in their files run."""

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
            # It has no parameters, because pytest would look for fixtures with the names of drawn
            # values.
            @pytest.mark.skip(reason="needs hypothesis")
            def stand_in() -> None: ...

            stand_in.__name__, stand_in.__doc__ = test.__name__, test.__doc__
            return stand_in

        return skipped

    def settings(*_: Any, **__: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef]
        return lambda test: test

    class _Strategies:
        """Returns itself for every attribute and call, so that strategies can be built but not
        drawn."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *_: Any, **__: Any) -> Any:
            return self

    st: Any = _Strategies()  # type: ignore[no-redef]

__all__ = ["given", "settings", "st"]
