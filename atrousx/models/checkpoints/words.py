"""Names from files in messages: few, and without control characters."""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: object) -> str:
    """Returns a name as it is, or its repr if a terminal could not show it.

    >>> printable("conv1.weight"), printable("conv1" + chr(10))
    ('conv1.weight', "'conv1\\\\n'")
    """
    text = str(name)
    return text if text.isprintable() else repr(text)


def abridged(names: Sequence[object], shown: int = 4) -> str:
    """Returns the first names and the number of the others.

    >>> abridged("abcdef")
    'a, b, c, d and 2 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more
