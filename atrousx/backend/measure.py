"""The backend "measure": who computes a pass, by what its geometry's first call showed."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterable

import torch

from .cache import read, write
from .geometry import FORWARD, PLAIN, Geometry, Operands, Options, geometry_of
from .machine import is_capturing, machine_of
from .precision import get_precision
from .table import Choice, Table
from .trial import try_both

table = Table()
# Held by whoever looks at the table or measures: two threads at once would slow each other.
lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child of a process that measures at that moment would wait for ever.
    os.register_at_fork(after_in_child=lambda: lock._at_fork_reinit())  # type: ignore[attr-defined]

# Who computes; of a forward, too, whether PyTorch's convolution computes its gradients: of both
# operands, or of the weight where the input has none. Then autograd may be PyTorch's own as well.
NATIVE, TORCH, TORCH_THROUGHOUT, TORCH_FOR_WEIGHT = range(4)
# What was decided, by all that a call knows: quicker to look up than a geometry is to make.
_decided: dict[tuple[object, ...], int] = {}
_MOST_DECIDED = 8192


def runs_natively(pass_: str, operands: Operands, options: Options, ending: str = "") -> bool:
    """Whether atrousx's kernels are to compute this pass, or else PyTorch's convolution."""
    return who_computes(pass_, operands, options, ending) == NATIVE


def who_computes(pass_: str, operands: Operands, options: Options, ending: str = "") -> int:
    """The same, and of a forward whether its gradients have turned out to be PyTorch's, too."""
    key = _key(pass_, operands, options, ending)
    found = None if key is None else _decided.get(key)
    return _decide(pass_, operands, options, ending, key) if found is None else found


def note_torch_throughout(forward: Operands, options: Options, of_input: bool) -> None:
    """Says that PyTorch's convolution computes all passes, gradients of the input or without."""
    key = _key(FORWARD, forward, options, "")
    # What a new choice has cleared is looked up by the next forward, and noted after it.
    if key is not None and _decided.get(key) in (TORCH, TORCH_FOR_WEIGHT):
        _decided[key] = TORCH_THROUGHOUT if of_input else TORCH_FOR_WEIGHT


def _key(
    pass_: str, operands: Operands, options: Options, ending: str
) -> tuple[object, ...] | None:
    """All that a call knows; None for tensors that something traces."""
    if torch._C._len_torch_dispatch_stack():
        return None
    key: list[object] = [pass_, options, ending]
    for tensor in operands:
        if tensor is None:
            key.append(None)
        elif type(tensor) in PLAIN:
            # By hand: to call alignment() takes as long as all the rest.
            key += (tensor.shape, tensor.stride(), tensor.data_ptr() & 15)
        else:
            return None
    key += (
        operands.input.dtype,
        operands.input.device,
        torch._C._get_deterministic_algorithms(),
        get_precision(),
        torch.get_num_threads(),
    )
    return tuple(key)


def _decide(
    pass_: str,
    operands: Operands,
    options: Options,
    ending: str,
    key: tuple[object, ...] | None,
) -> int:
    geometry = geometry_of(pass_, operands, options, ending)
    deterministic = torch.are_deterministic_algorithms_enabled()
    capturing = is_capturing(operands.input.device)
    plain = _plain(operands)
    if plain and operands.input.numel() == 0:
        return NATIVE  # nothing to multiply, and nothing to time
    still = deterministic or capturing or not plain
    with lock:
        _read_cache(operands.input.device)
        choice = table.decide(geometry)
        if (choice is None or not choice.verified) and not still:
            choice = _measured(geometry, operands, choice)
        who = NATIVE if native_of(choice) else TORCH
        if key is not None and not capturing:
            if len(_decided) >= _MOST_DECIDED:
                _decided.clear()
            _decided[key] = who
    return who


def native_of(choice: Choice | None) -> bool:
    """Nothing that was not compared runs; where bits must repeat, all that agrees does."""
    if choice is None or not choice.verified:
        return False
    return choice.agrees if torch.are_deterministic_algorithms_enabled() else choice.native


def _plain(operands: Operands) -> bool:
    """Whether tensors are what they seem: nothing traces the call, and no subclass has its own."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and not torch.compiler.is_compiling()
        and not operands.input.is_meta
        and all(type(t) in PLAIN for t in operands if t is not None)
    )


def _measured(geometry: Geometry, operands: Operands, known: Choice | None) -> Choice:
    """A new choice; of one that another build made, only whether this one's kernels are right."""
    choice = try_both(geometry, operands, times=known is None)
    if known is not None and choice.agrees:
        return keep(geometry, known._replace(verified=True, agrees=True))
    keep(geometry, choice)
    if choice.source == "measured":
        _store(geometry, choice, operands.input.device)
    return choice


def keep(geometry: Geometry, choice: Choice) -> Choice:
    """Puts a choice in the table, the lock being held; what was decided before is asked anew."""
    table.put(geometry, choice)
    _decided.clear()
    return choice


def replace(choices: Iterable[tuple[Geometry, Choice]]) -> None:
    """Puts choices in the place of all that is known of their layers, the lock being held."""
    table.replace(choices)
    _decided.clear()


def forget() -> None:
    """Starts over, as a new process would."""
    with lock:
        table.clear()
        _decided.clear()
        _read.clear()
        _unwritten.clear()


# The file is read once for each machine that this one has been, which other numbers of threads make
# it, and written once a second, at most, and at the end.
_read: set[str] = set()
_unwritten: dict[str, dict[str, list[object]]] = {}
_SECONDS_BETWEEN = 1.0
_written_at = 0.0


def _read_cache(device: torch.device) -> None:
    machine = machine_of(device)
    if machine in _read:
        return
    _read.add(machine)
    for text, numbers in read(machine).items():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            table.add(Geometry.parse(text), Choice.of_numbers(numbers, "cached"))


def _store(geometry: Geometry, choice: Choice, device: torch.device) -> None:
    global _written_at
    _unwritten.setdefault(machine_of(device), {})[geometry.text()] = choice.numbers()
    if time.monotonic() - _written_at > _SECONDS_BETWEEN:
        _write()
        _written_at = time.monotonic()


@atexit.register
def _write() -> None:
    for machine, entries in _unwritten.items():
        write(machine, entries)
    _unwritten.clear()


def choice_of(geometry: Geometry, device: torch.device) -> Choice | None:
    """What was chosen for a geometry, or the nearest one; nothing is measured."""
    with lock:
        _read_cache(device)
        return table.find(geometry)
