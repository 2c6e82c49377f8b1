"""Loads the compiled operators and registers Python kernels, gradients and autocast rules."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAMESPACE = "atrousx"
# Operators that compute nothing.
BUILD_INFO = {"_cpu_build_info", "_cuda_build_info"}


class Core(NamedTuple):
    """The library with the CPU's kernels and the schemas of all operators."""

    file: Path
    cpu_isa: str
    built_with_torch: str


class Cuda(NamedTuple):
    """The library with the CUDA kernels."""

    file: Path
    architectures: str  # in the notation of TORCH_CUDA_ARCH_LIST
    built_with_cuda: str


def _load(file: Path, what: str) -> None:
    """Loads a compiled library, which registers its operators.

    Raises:
        ImportError: the file is missing or cannot be loaded.
    """
    try:
        if not file.is_file():
            raise OSError(f"there is no file {file}")
        torch.ops.load_library(file)
    except OSError as error:
        reason = error.__cause__ or error  # newer releases of torch wrap the loader's message
        raise ImportError(
            f"atrousx could not load its {what} ({reason}). Install it with 'pip install .', or "
            "'pip install -e .' to run it from its source tree; it needs torch >= 2.11, this is "
            f"torch {torch.__version__}.",
            path=str(file),
        ) from error


def _load_core(folder: Path) -> Core:
    file = folder / "_C.so"
    _load(file, "compiled operators")
    return Core(file, *torch.ops.atrousx._cpu_build_info())


def _load_cuda(folder: Path) -> Cuda | None:
    """Loads the CUDA library; returns None if atrousx was compiled without nvcc."""
    file = folder / "_cuda.so"
    if not file.exists():
        return None
    _load(file, "CUDA operators")
    return Cuda(file, *torch.ops.atrousx._cuda_build_info())


core = _load_core(Path(__file__).parent)
cuda = _load_cuda(Path(__file__).parent)
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

# Device types other than cuda that run the CUDA kernels, and the Python kernels for all of them.
_added_gpu_types: set[str] = set()
_gpu_kernels: list[tuple[str, Callable[..., Any]]] = []
# The dispatch keys of autocast. A rule excludes them, so that it is not called again.
_autocast_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(
    torch._C.DispatchKey.AutocastCUDA
)
AutocastRule = Literal["lower", "float32", "unchanged"]
_autocast_rules: list[tuple[torch._ops.OpOverload, AutocastRule]] = []


def is_gpu(tensor: torch.Tensor) -> bool:
    """Whether the CUDA kernels compute with this tensor."""
    return tensor.is_cuda or tensor.device.type in _added_gpu_types


def register_gpu_kernel(name: str, kernel: Callable[..., Any]) -> None:
    """Registers a Python kernel of an operator for all devices that run the CUDA kernels."""
    _gpu_kernels.append((name, kernel))
    _library.impl(name, kernel, "CUDA")


def add_gpu_type(device_type: str, key: str) -> None:
    """Adds a device type, with its dispatch key, that runs the CUDA kernels.

    Its compiled kernels are registered elsewhere. The tests have such a device in host memory.
    """
    global _autocast_keys
    _added_gpu_types.add(device_type)
    _autocast_keys = _autocast_keys.add(torch._C._dispatch_key_parse(f"Autocast{key}"))
    for name, kernel in _gpu_kernels:
        _library.impl(name, kernel, key)
    for op, rule in _autocast_rules:
        _register_autocast(op, rule, device_type, f"Autocast{key}")


# Compute capabilities of Tegra GPUs, which do not run code for another GPU of their generation.
_TEGRA = ((7, 2), (8, 7), (10, 1), (11, 0))


def served_by(capability: tuple[int, int], architectures: str) -> bool:
    """Whether a GPU of this compute capability runs code compiled for ``architectures``.

    ``architectures`` has the notation of TORCH_CUDA_ARCH_LIST. Machine code for x.y runs on every
    x.z with z >= y. This holds with the suffix f, too; with the suffix a it runs on x.y only. PTX
    is compiled by the driver and runs from x.y on. PTX with a suffix runs where the machine code
    with this suffix does.
    """
    for major, minor, suffix, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        compiled = (int(major), int(minor))
        exact = suffix == "a" or capability in _TEGRA or compiled in _TEGRA
        if capability == compiled:
            return True
        if not exact and capability[0] == compiled[0] and capability > compiled:
            return True
        if ptx and not suffix and capability > compiled:
            return True
    return False


def only_torch(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on a device for which atrousx has no compiled kernels."""
    if tensor.is_cpu or tensor.is_meta or tensor.device.type in _added_gpu_types:
        return False
    return not tensor.is_cuda or torch.version.hip is not None or cuda is None


def device_problem(tensor: torch.Tensor) -> str | None:
    """Returns why atrousx's kernels cannot run on a tensor's device and what to do, else None."""
    if tensor.is_cpu or tensor.is_meta or tensor.device.type in _added_gpu_types:
        return None
    if not tensor.is_cuda or torch.version.hip is not None:
        return (
            "atrousx has kernels for the CPU and for NVIDIA's GPUs; move the tensors there "
            "(convolutions run here, too, by PyTorch's)"
        )
    if cuda is None:
        return (
            "atrousx was installed without its CUDA kernels; install CUDA's compiler nvcc, then "
            "atrousx again with ATROUSX_CUDA=1 (convolutions run meanwhile, by PyTorch's)"
        )
    # Traced tensors have no real GPU, and a compiler cannot trace functools.cache.
    return None if torch.compiler.is_compiling() else _gpu_problem(tensor.get_device())


@functools.cache
def _gpu_problem(index: int) -> str | None:
    if cuda is None or not torch.cuda.is_available():  # fake CUDA tensors on a machine without GPU
        return None
    capability = torch.cuda.get_device_capability(index)
    if served_by(capability, cuda.architectures):
        return None
    number = f"{capability[0]}.{capability[1]}"
    return (
        f"this {torch.cuda.get_device_name(index)} has compute capability {number}, and atrousx "
        f"was compiled for {cuda.architectures}; install it again with "
        f"TORCH_CUDA_ARCH_LIST={number}"
    )


def assume_constant_result(function: _Function) -> _Function:
    """Makes torch.compile call a function while tracing and treat the result as a constant.

    It does the same as ``torch.compiler.assume_constant_result``. That function imports
    torch._dynamo, which takes a second and is needed only by users who compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def register_autograd_kernel(op: torch._ops.OpOverload, kernel: Callable[..., Any]) -> None:
    """Registers an operator's kernel for autograd; it gets the dispatch keys as first argument."""
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    _library.impl(name, kernel, "Autograd", with_keyset=True)


def implement_composite(op: torch._ops.OpOverload, function: Callable[..., Any]) -> None:
    """Implements an operator by a function of other operators.

    Tracers see one call first and may decompose it later. Gradients, dtypes and devices are those
    of the operators that the function calls.
    """
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    _library.impl(name, function, "CompositeImplicitAutograd")


def register_autocast(
    op: torch._ops.OpOverload, rule: AutocastRule, *, cpu: AutocastRule | None = None
) -> None:
    """Registers the autocast rule of an operator on CPU and CUDA.

    "lower" casts floating tensors to the dtype of autocast, as PyTorch does for convolutions.
    "float32" casts half tensors to float32, as PyTorch does for sensitive operators. "unchanged"
    casts nothing. ``cpu`` is the CPU's rule where it differs.
    """
    _autocast_rules.append((op, rule))
    _register_autocast(op, rule if cpu is None else cpu, "cpu", "AutocastCPU")
    _register_autocast(op, rule, "cuda", "AutocastCUDA")


def _register_autocast(
    op: torch._ops.OpOverload, rule: AutocastRule, device_type: str, key: str
) -> None:
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    _library.impl(name, functools.partial(_autocast, op, device_type, rule), key)


def _autocast(
    op: Callable[..., Any], device_type: str, rule: AutocastRule, *args: Any, **kwargs: Any
) -> Any:
    dtype = torch.get_autocast_dtype(device_type) if rule == "lower" else torch.float32

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(item) for item in value]
        castable = (
            rule != "unchanged"
            and isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dtype != torch.float64
            and value.device.type == device_type
        )
        return value.to(dtype) if castable else value

    with torch._C._ExcludeDispatchKeyGuard(_autocast_keys):
        return op(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
