"""The cases, for every operator of the schema."""

from __future__ import annotations

import zlib
from collections.abc import Collection

import torch

from ..._library import BUILD_INFO
from ..devices import Device
from . import convolution, lattice, mean_field, pyramid, upsampling
from .case import DTYPES, Case, Tensors, placed, rounded

__all__ = ["DTYPES", "Case", "Tensors", "cases", "operators", "placed", "rounded", "seed"]


def cases(device: Device, quick: bool = False, named: Collection[str] = ()) -> list[Case]:
    """The cases of a device, of all operators or the ``named`` ones, in an order that is the same
    in every process.

    Raises:
        ValueError: a name that no case has.
    """
    pages = (convolution, pyramid, upsampling, lattice, mean_field)
    found = [case for page in pages for case in page.cases(device, quick)]
    known = dict.fromkeys(case.operator for case in found)
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"operators must be of {', '.join(known)}; got {', '.join(unknown)}")
    return [
        case
        for case in found
        if (device.is_cpu or not case.cpu_only) and (not named or case.operator in named)
    ]


def operators() -> list[str]:
    """Every operator of torch.ops.atrousx that computes, private ones too."""
    names = torch._C._dispatch_get_all_op_names()
    prefix = "atrousx::"
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return sorted(found - BUILD_INFO)


def seed(case: Case) -> None:
    """Operators on one geometry get the same numbers, in every process."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
