"""The cases of all operators in the schema."""

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
    """Returns the cases of a device, for all operators or the ``named`` ones.

    Their order is the same in every process.

    Raises:
        ValueError: no case has one of the names.
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
    """Returns the names of all operators of torch.ops.atrousx that compute, private ones too."""
    names = torch._C._dispatch_get_all_op_names()
    prefix = "atrousx::"
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return sorted(found - BUILD_INFO)


def seed(case: Case) -> None:
    """Seeds PyTorch by a case's name, so that a geometry has the same numbers in every process."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
