"""Packs a frozen weight for the CPU's kernels once, instead of at every call."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_pack_weight = torch.ops.atrousx._atrous_conv2d_pack_weight.default
_suits_filters = torch.ops.atrousx._atrous_conv2d_suits_filters.default
_fingerprint = torch.ops.atrousx._fingerprint.default

Parameters = dict[str, nn.Parameter | None]


class _Form(NamedTuple):
    made_of: tuple[Any, ...]
    fingerprint: int  # of the weight's bytes
    packed: Tensor


class PackedWeight:
    """Keeps the packed forms of one weight, and packs the weight again when it has changed.

    A change through ``.data``, a NumPy array or another tensor in the same memory does not change
    the weight's version counter. But the code that makes such a change got the weight from its
    module, and the module then incremented ``lent``. From then on every call compares a fingerprint
    of the weight's bytes, at the speed of memory. The comparisons end when only the module holds
    the weight and its memory.

    A packed form depends on the CPU, so it is neither copied nor stored with its module.
    """

    def __init__(self, restored: bool = False) -> None:
        # The key is the points of the transform; () if there is none.
        self._forms: dict[tuple[int, ...], _Form] = {}
        self._restored = restored
        self.lent, self._trusted = 1, 0

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (True,)

    def of(
        self, parameters: Parameters, name: str, groups: int = 1, points: tuple[int, ...] = ()
    ) -> Tensor | None:
        """Returns a packed form for an immediate call, or None if kernels take the weight itself.

        The weight is the parameter ``name`` of its module; the caller must not hold a reference to
        it. ``points`` are the rows and columns of points that 3x3 filters are transformed to, if
        the filters' values suit the transform: see ``winograd_plan.h``. The result is None on GPUs,
        under autocast, which would round the weight, and in traced code.
        """
        if not _is_packed(parameters[name]):
            return None
        if self._trusted != self.lent:
            self._compare(parameters, name)
        made_of = _made_of(parameters[name])
        form = self._forms.get(points)
        if form is None or form.made_of != made_of:
            form = self._forms[points] = _pack(parameters[name], groups, points)
        return form.packed

    def _compare(self, parameters: Parameters, name: str) -> None:
        """Drops the forms of a changed weight. Ends the comparisons if only the module holds it."""
        lent = self.lent
        if self._restored:
            _move(parameters, name)
            self._restored = False
        # Counted before the fingerprint is taken: code that holds the weight no longer can only
        # have changed it earlier, so the fingerprint shows the change.
        alone = _is_alone(parameters, name)
        if self._forms:
            fingerprint = _fingerprint(parameters[name])
            self._forms = {p: f for p, f in self._forms.items() if f.fingerprint == fingerprint}
        if alone:
            self._trusted = lent


class Lender(nn.Module):
    """A module that counts requests for its parameters: after each one they may be changed."""

    def own(self, name: str) -> Any:
        """Returns a parameter for the module's own calls, which only read it."""
        return self.__dict__["_parameters"][name]

    def packed_weights(self) -> Iterable[PackedWeight]:
        """Returns the packed weights that must follow the parameters."""
        raise NotImplementedError

    def _lend(self) -> None:
        # If a compiled call changes a parameter, the version counter shows it.
        if not torch.compiler.is_compiling():
            for packed in self.packed_weights():
                packed.lent += 1

    # PyTorch reaches a module's parameters only by ``_parameters`` or ``__getattr__``.
    @property
    def _parameters(self) -> Parameters:
        self._lend()
        parameters: Parameters = self.__dict__["_parameters"]
        return parameters

    @_parameters.setter
    def _parameters(self, parameters: Parameters) -> None:
        self.__dict__["_parameters"] = parameters

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_parameters", ()):
            self._lend()
        return super().__getattr__(name)


def _is_packed(weight: nn.Parameter | None) -> bool:
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch.is_autocast_enabled("cpu")
    )


def _made_of(weight: Any) -> tuple[Any, ...]:
    """Returns the values that show an ordinary change of the weight."""
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.shape, weight.stride()


def _pack(weight: Any, groups: int, points: tuple[int, ...]) -> _Form:
    with torch.inference_mode(False), torch.no_grad():
        suited = points if points and _suits_filters(weight) else ()
        # Taken before packing: the next comparison then shows a change that came meanwhile.
        fingerprint = _fingerprint(weight)
        return _Form(_made_of(weight), fingerprint, _pack_weight(weight, groups, suited))


def _move(parameters: Parameters, name: str) -> None:
    """Moves a weight that was just read from a file to memory that PyTorch allocates."""
    weight: Any = parameters[name]
    storage = weight.untyped_storage()
    stays = weight.is_inference() or storage.resizable() or storage.is_shared()
    del weight, storage
    if not stays and _holders(parameters, name) == _NOBODY_ELSE:
        with torch.inference_mode(False), torch.no_grad():
            parameters[name].data = parameters[name].data.clone()  # type: ignore[union-attr]


def _is_alone(parameters: Parameters, name: str) -> bool:
    """Whether the weight can be changed only by code that asks its module for it."""
    # PyTorch can resize memory that it allocated. Other memory may belong to NumPy, to a file or to
    # another process.
    storage = parameters[name].untyped_storage()  # type: ignore[union-attr]
    own = storage.resizable() and not storage.is_shared()
    del storage
    return own and _holders(parameters, name) == _NOBODY_ELSE


def _holders(parameters: Parameters, name: str) -> tuple[int, ...]:
    """Returns the reference counts of a parameter, its storage and the storage's Python object."""
    storage = parameters[name].untyped_storage()  # type: ignore[union-attr]
    return (
        sys.getrefcount(parameters[name]),
        torch._C._storage_Use_Count(storage._cdata),
        sys.getrefcount(storage),
    )


_NOBODY_ELSE = _holders({"": nn.Parameter(torch.empty(1), requires_grad=False)}, "")
