"""``atrousx info``: prints versions, instruction sets and GPUs, or what a weights file is."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

import torch

from .. import __version__, _library
from ._shared import CommandError, one_line
from ._weights_file import weights_rows

if TYPE_CHECKING:
    from ._shared import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser("info", help="versions and GPU, or what a file of weights is")
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="say what this file of weights is and how to load it, in place of the versions",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = _versions() if args.file is None else _weights(args.file)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _weights(file: str) -> dict[str, str]:
    try:
        return weights_rows(file)
    except (OSError, ValueError, ImportError) as error:
        told = one_line(error)
        # Errors of reading name the file, errors of recognising do not.
        raise CommandError(told if file in told else f"{file}: {told}") from error


def _versions() -> dict[str, str]:
    core, cuda = _library.core, _library.cuda
    return {
        "atrousx": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (compiled against {core.built_with_torch})",
        "CPU kernels": f"{core.cpu_isa}, {torch.get_num_threads()} threads",
        "CUDA kernels": "not compiled"
        if cuda is None
        else f"compiled by CUDA {cuda.built_with_cuda} for {cuda.architectures}",
        "GPU": _gpus(),
    }


def _gpus() -> str:
    if torch.version.cuda is None:
        return "none: this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "none that PyTorch sees"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor})")
    return ", ".join(names)
