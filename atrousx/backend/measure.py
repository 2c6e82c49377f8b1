"""The backend "measure": the first call of a geometry decides which implementation computes it."""

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
# Held while the table is used or a geometry is measured: two measuring threads would slow each
# other.
lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # If the parent holds the lock at the fork, the child would wait for ever.
    os.register_at_fork(after_in_child=lambda: lock._at_fork_reinit())  # type: ignore[attr-defined]

# Which implementation computes a pass. The last two exist for the forward pass only: PyTorch's
# convolution computes its gradients, too. TORCH_THROUGHOUT: those of input and weight.
# TORCH_FOR_WEIGHT: that of the weight, and the input needs none. PyTorch's autograd is then used.
NATIVE, TORCH, TORCH_THROUGHOUT, TORCH_FOR_WEIGHT = range(4)
# Decisions by the lookup key of a call, which is faster to make than a Geometry.
_decided: dict[tuple[object, ...], int] = {}
_MOST_DECIDED = 8192


def runs_natively(pass_: str, operands: Operands, options: Options, ending: str = "") -> bool:
    """Whether atrousx's kernels compute this pass, and not PyTorch's convolution."""
    return who_computes(pass_, operands, options, ending) == NATIVE


def who_computes(pass_: str, operands: Operands, options: Options, ending: str = "") -> int:
    """Returns which implementation computes a pass, as one of the four constants above."""
    key = _key(pass_, operands, options, ending)
    found = None if key is None else _decided.get(key)
    return _decide(pass_, operands, options, ending, key) if found is None else found


def note_torch_throughout(forward: Operands, options: Options, of_input: bool) -> None:
    """Notes that PyTorch's convolution computes all passes of a layer.

    ``of_input``: a gradient of the input was among these passes.
    """
    key = _key(FORWARD, forward, options, "")
    # A new choice may have cleared the entry. The next forward decides again, and its backward
    # then notes it.
    if key is not None and _decided.get(key) in (TORCH, TORCH_FOR_WEIGHT):
        _decided[key] = TORCH_THROUGHOUT if of_input else TORCH_FOR_WEIGHT


def _key(
    pass_: str, operands: Operands, options: Options, ending: str
) -> tuple[object, ...] | None:
    """Returns the lookup key of a call, or None if the call is being traced."""
    if torch._C._len_torch_dispatch_stack():
        return None
    key: list[object] = [pass_, options, ending]
    for tensor in operands:
        if tensor is None:
            key.append(None)
        elif type(tensor) in PLAIN:
            # alignment() is inlined: calling it takes as long as the rest of this function.
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
    """Whether a choice lets atrousx's kernels run.

    A kernel runs only after its result was compared. In deterministic mode every kernel that
    agreed may run.
    """
    if choice is None or not choice.verified:
        return False
    return choice.agrees if torch.are_deterministic_algorithms_enabled() else choice.native


def _plain(operands: Operands) -> bool:
    """Whether all tensors are real: the call is not traced, and no tensor is of a subclass."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and not torch.compiler.is_compiling()
        and not operands.input.is_meta
        and all(type(t) in PLAIN for t in operands if t is not None)
    )


def _measured(geometry: Geometry, operands: Operands, known: Choice | None) -> Choice:
    """Returns a measured choice. If another build made it, results are compared but not timed."""
    choice = try_both(geometry, operands, times=known is None)
    if known is not None and choice.agrees:
        return keep(geometry, known._replace(verified=True, agrees=True))
    keep(geometry, choice)
    if choice.source == "measured":
        _store(geometry, choice, operands.input.device)
    return choice


def keep(geometry: Geometry, choice: Choice) -> Choice:
    """Puts a choice in the table and clears the lookup keys. The caller holds the lock."""
    table.put(geometry, choice)
    _decided.clear()
    return choice


def replace(choices: Iterable[tuple[Geometry, Choice]]) -> None:
    """Replaces all choices of the layers of these choices. The caller holds the lock."""
    table.replace(choices)
    _decided.clear()


def forget() -> None:
    """Forgets all choices, as in a new process."""
    with lock:
        table.clear()
        _decided.clear()
        _read.clear()
        _unwritten.clear()


# The file is read once for each description of the machine, which contains the number of threads.
# It is written at most once a second, and at exit.
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
    """Returns the choice of a geometry or of the nearest one, without measuring."""
    with lock:
        _read_cache(device)
        return table.find(geometry)
