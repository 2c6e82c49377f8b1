"""Explains which implementation and algorithm would compute a convolution, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import _library
from .._taps import live_share
from .algorithm import Algorithm, ask, current_points
from .choice import Backend, check_backend, get_backend, measures
from .described import ConvOptions, Problem, problem_of
from .geometry import PASSES, Geometry
from .measure import choice_of, native_of
from .precision import get_precision
from .rule import INFERS, PACKED, TRAINS, cpu_rule
from .table import Choice

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SOURCES = {"cached": "the cache", "loaded": "a checkpoint", "nearest": "the nearest size"}
_NO_KERNELS = "none: built without the CUDA library"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class PassExplanation:
    """One of the three passes of a convolution."""

    name: str  # "forward", "grad-input" or "grad-weight"
    computed_by: str  # "atrousx", "PyTorch", or "undecided" until its first call is measured
    algorithm: str  # what atrousx's kernels would use, even if PyTorch computes the pass
    points: tuple[int, ...]  # of a transformed Winograd filter, in rows and columns
    reason: str
    native_seconds: float | None  # measured time of one call
    torch_seconds: float | None

    @property
    def method(self) -> str:
        """The algorithm and, of minimal filtering, its points."""
        points = "x".join(map(str, self.points))
        return f"{self.algorithm}, {points} points" if points else self.algorithm


@dataclass(frozen=True)
class Explanation:
    """The result of :func:`atrousx.explain`; ``print`` shows it as a table."""

    layer: str
    backend: str
    output_size: tuple[int, int, int, int]
    live_share: float
    multiply_adds: int  # in one pass, including those that read padding
    live_multiply_adds: int  # in one pass
    bytes_moved: int  # in one pass, if each tensor is read or written once
    passes: tuple[PassExplanation, ...]

    def __str__(self) -> str:
        head = (
            f"{self.layer}\n"
            f"{self.live_share:.1%} of the multiply-adds touch data: "
            f"{self.live_multiply_adds / 1e9:.3g} of {self.multiply_adds / 1e9:.3g} billion in a "
            f"pass; {self.bytes_moved / 1e6:.3g} MB to move at least"
        )
        rows = [("pass", "computed by", "atrousx's algorithm", "why")]
        rows += [(p.name, p.computed_by, p.method, p.reason) for p in self.passes]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]
        return "\n".join([head, *lines])


def explain(
    layer: nn.Conv2d | Sequence[int],
    input: Tensor | Sequence[int],
    *,
    backend: Backend | None = None,
    trains: bool = True,
    **options: Unpack[ConvOptions],
) -> Explanation:
    """Explains which implementation and algorithm would compute a convolution's passes, and why.

    Nothing is computed or measured. If the backend is "measure" and the sizes are new to it, the
    passes are "undecided". Only convolutions have a choice. ``multi_rate_conv2d``, upsampling and
    the CRF use atrousx's kernels wherever there are any; :func:`atrousx.set_backend` gives the
    reasons.

    Args:
        layer: a ``torch.nn.Conv2d`` or :class:`atrousx.AtrousConv2d`; or the size of a weight,
            ``[K, C / groups, KH, KW]``.
        input: a tensor, or its size ``[N, C, H, W]``; ``(H, W)`` is enough.
        backend: as in :func:`atrousx.ops.atrous_conv2d`.
        trains: whether gradients will be computed; on the CPU "auto" depends on it.
        options: ``stride``, ``padding``, ``dilation`` and ``groups`` as in ``atrous_conv2d``, if
            ``layer`` is a size; ``dtype``, ``device`` and ``channels_last`` of the input, if
            ``input`` is a size.

    Returns:
        An :class:`atrousx.backend.explain.Explanation`.

    Raises:
        TypeError: an argument has the wrong type, or repeats what the layer or the tensor defines.
        ValueError: the sizes do not fit each other, or the output would be empty.

    Example:
        >>> import atrousx
        >>> layer = atrousx.AtrousConv2d(256, 256, 3, padding=18, dilation=18)
        >>> found = atrousx.explain(layer, (33, 33), backend="native")
        >>> found.passes[0].computed_by, round(found.live_share, 3), found.multiply_adds
        ('atrousx', 0.405, 642318336)
        >>> print(found)  # doctest: +ELLIPSIS
        3x3 convolution, 256 to 256 channels, ...
        pass         computed by  atrousx's algorithm ...
        forward      atrousx ...
    """
    problem = problem_of(layer, input, options)
    chosen = get_backend() if backend is None else backend
    check_backend("backend", chosen)
    geometry = problem.geometry(PASSES[0])
    stride, sides, dilation, *_ = geometry.options
    taps, extents = geometry.weight[2:], geometry.output[2:]
    if min(extents) <= 0:
        raise ValueError(f"the output would be empty: {tuple(extents)}")
    share = live_share(geometry.input[2:], taps, extents, stride, sides, dilation)
    products = math.prod(geometry.output) * math.prod(geometry.weight[1:])
    tensors = (geometry.input, geometry.weight, geometry.output)
    return Explanation(
        layer=geometry.words().partition(" of a ")[2],
        backend=chosen,
        output_size=geometry.output,
        live_share=share,
        multiply_adds=products,
        live_multiply_adds=round(share * products),
        bytes_moved=sum(map(math.prod, tensors)) * problem.dtype.itemsize,
        passes=tuple(_explain_pass(problem, name, chosen, trains) for name in PASSES),
    )


def _explain_pass(problem: Problem, name: str, backend: str, trains: bool) -> PassExplanation:
    geometry = problem.geometry(name)
    algorithm = _native_algorithm(problem, geometry)
    choice: Choice | None = None
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    if backend in ("native", "torch"):
        by_torch, reason = backend == "torch", f'the backend "{backend}" asks for it'
    elif measures(backend, like):
        choice = choice_of(geometry, problem.device)
        by_torch, reason = not native_of(choice), _why(choice)
    else:
        by_torch, reason = _by_rule(problem, geometry, trains)
    timed = choice is not None and math.isfinite(choice.native_seconds)
    decided = "PyTorch" if by_torch else "atrousx"
    measured = backend not in ("native", "torch") and measures(backend, like)
    return PassExplanation(
        name=name,
        computed_by=UNDECIDED if measured and choice is None else decided,
        algorithm=algorithm.name,
        points=algorithm.points,
        reason=reason,
        native_seconds=choice.native_seconds if choice is not None and timed else None,
        torch_seconds=choice.torch_seconds if choice is not None and timed else None,
    )


def _native_algorithm(problem: Problem, geometry: Geometry) -> Algorithm:
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    if _library.is_gpu(like) and _library.cuda is None:
        return Algorithm(_NO_KERNELS)
    *conv, tf32 = geometry.options
    last = any(geometry.channels_last)
    sizes = (geometry.input, geometry.weight)
    return ask(like, geometry.pass_, *sizes, *conv, last, problem.frozen, tf32)


def _why(choice: Choice | None) -> str:
    if choice is None:
        return "not measured yet: its first call decides"
    where = {
        "cached": "the cache",
        "loaded": "a checkpoint",
        "nearest": "the nearest size measured",
    }
    source = f" (from {where[choice.source]})" if choice.source in where else ""
    if choice.source == "no memory":
        return "there was no memory to compare results"
    if not choice.verified:
        return f"another build chose{source}: its first call compares results"
    if not choice.agrees:
        return f"atrousx's result is wrong here, by {choice.error:.2g} of it{source}"
    if not math.isfinite(choice.native_seconds):
        return f"atrousx's result is right{source}"
    times = f"atrousx {_time(choice.native_seconds)}, PyTorch {_time(choice.torch_seconds)}"
    return f"measured{source}: {times}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def _by_rule(problem: Problem, geometry: Geometry, trains: bool) -> tuple[bool, str]:
    """Applies the rule of "auto" on this CPU, which decides all three passes together."""
    stride, sides, dilation, *_ = geometry.options
    size, weight = torch.Size(geometry.input), torch.Size(geometry.weight)
    conv = (size, weight, stride, sides, dilation)
    last = any(geometry.channels_last)
    # A layer that `optimize` made is not trained.
    use = PACKED if problem.frozen else TRAINS if trains else INFERS
    by_torch = cpu_rule(problem.dtype, False, last, conv, use, get_precision())
    isa = _library.core.cpu_isa
    if current_points(conv, use != INFERS, problem.dtype):
        return by_torch, "minimal filtering takes fewer products than live taps"
    expected = "PyTorch's" if by_torch else "atrousx's"
    return by_torch, f"the rule measured with {isa} expects {expected} to be faster"
