"""Gives a module a rewritten forward; its class, copying and pickling work as before."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx, nn


def rewrite(module: nn.Module, graph: fx.Graph) -> None:
    """Makes a graph the module's forward, in place; nothing else of the module changes."""
    if isinstance(module, fx.GraphModule):
        module.recompile()
        return
    for node in graph.nodes:
        node.type = None  # the generated code has no imports for annotations
    source = graph.python_code("self").src.strip()
    # The original class, if the module was rewritten before.
    base: type[nn.Module] = getattr(module, "_written_as", (type(module),))[0]
    module.__class__ = _subclass(base, source)


# Modules with the same class and source share the new class, and so share its compiled code.
_classes: dict[tuple[type, str], type[nn.Module]] = {}


def _subclass(base: type[nn.Module], source: str) -> type[nn.Module]:
    """Returns a subclass with another forward."""
    if (base, source) not in _classes:
        scope: dict[str, Any] = {"torch": torch}
        exec(compile(source, f"<{base.__qualname__}, optimized>", "exec"), scope)
        body = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__reduce_ex__": _reduce,
            "_written_as": (base, source),
            "forward": scope["forward"],
        }
        metaclass: Any = type(base)
        _classes[base, source] = metaclass(base.__name__, (base,), body)
    return _classes[base, source]


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    # Pickle cannot find the class by its name, so the base class and the source are stored.
    _, _, *state = cast(tuple[Any, ...], object.__reduce_ex__(self, protocol))
    return (_blank, self._written_as, *state)


def _blank(base: type[nn.Module], source: str) -> nn.Module:
    cls = _subclass(base, source)
    return cls.__new__(cls)
