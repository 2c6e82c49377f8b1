"""The layers that ``atrousx.optimize`` inserts: their stores also add a residual and apply ReLU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._taps import output_size
from ..backend.choice import (
    allows_tf32,
    get_backend,
    knows_torch_only,
    measures,
    needs_torch,
    torch_computes,
    winograd_points,
)
from ..backend.geometry import FUSED, Operands, Options
from ..backend.measure import runs_natively
from ..backend.self_check import ensure_right
from ..nn.aspp import split_projection
from ..nn.atrous_conv2d import AtrousConv2d
from ..ops import atrous_conv2d, multi_rate_conv2d
from ..ops._check import check_device, check_same_device, pair
from ..ops._geometry import sides_of
from ..ops.atrous_conv2d import convolve_fused
from ..ops.multi_rate_conv2d import multi_rate_conv2d_relu
from .packed import Lender, PackedWeight


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the convolution that equals ``norm(conv(x))`` in evaluation.

    They are ``w * s`` and ``(b - mean) * s + shift`` with ``s = scale / sqrt(variance + eps)``.
    They are computed in float64 and rounded once.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    bias = -norm.running_mean.double() * factor
    if conv.bias is not None:
        bias = bias + conv.bias.double() * factor
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * factor[:, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def frozen(tensor: Tensor, memory_format: torch.memory_format | None = None) -> nn.Parameter:
    """Returns a copy without gradient; by default filters are in channels_last."""
    if memory_format is None:
        memory_format = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().clone(memory_format=memory_format), requires_grad=False)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    # The stores with residual and ReLU are for inference only and have no gradient.
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class FusedConv2d(Lender, AtrousConv2d):
    """``relu(norm(conv(input)) + residual)`` with the normalisation folded into weight and bias."""

    relu: bool
    packed: PackedWeight

    @classmethod
    def make(
        cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False
    ) -> FusedConv2d:
        layer = cls.from_conv(conv)
        weight, bias = (conv.weight, conv.bias) if norm is None else fold(conv, norm)
        # Filters in channels_last would convert the map to channels_last. That costs more than a
        # depthwise convolution.
        depthwise = conv.groups > 1 and conv.groups == conv.in_channels
        layer.weight = frozen(weight, torch.contiguous_format if depthwise else None)
        layer.bias = None if bias is None else frozen(bias)
        layer.relu = relu
        layer.packed = PackedWeight()
        return layer

    def packed_weights(self) -> Iterable[PackedWeight]:
        return (self.packed,) if "packed" in self.__dict__ else ()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        fits = residual is None or self._fits(input, residual)
        trains = _wants_gradient(input, residual)
        padding = self.padding
        if (
            fits
            and not trains
            and not isinstance(padding, str)
            and self.padding_mode == "zeros"
            and input.dim() == 4
            # Kernels of narrow groups add the residual in a separate pass, slower than PyTorch's.
            and (residual is None or self.out_channels >= 8 * self.groups)
        ):
            sides = (padding[0], padding[1], padding[0], padding[1])
            output = self._stored(input, residual, sides)
            if output is not None:
                return output
        # PyTorch's convolution cannot add or clip in its store, so both are separate steps here.
        output = self._conv_forward(input, self.own("weight"), self.own("bias"))
        if residual is not None:
            output = output.add_(residual) if fits and not trains else output + residual
        if self.relu:
            output = F.relu(output) if trains else output.relu_()
        return output

    def _fits(self, input: Tensor, residual: Tensor) -> bool:
        """Whether the residual has the size and dtype of the convolution's result."""
        kind = input.device.type
        mixed = kind != "meta" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else input.dtype
        if not isinstance(residual, Tensor) or (residual.dtype, residual.dim()) != (dtype, 4):
            return False
        check_same_device("residual", residual, "input", input)
        size = input.shape[-2:]
        strides, dilations = pair("stride", self.stride), pair("dilation", self.dilation)
        sides = sides_of(self.padding, self.kernel_size, strides, dilations)
        extents = output_size(size, self.kernel_size, strides, sides, dilations)
        return tuple(residual.shape) == (input.shape[0], self.out_channels, *extents)

    def _stored(
        self, input: Tensor, residual: Tensor | None, sides: tuple[int, int, int, int]
    ) -> Tensor | None:
        """Returns the finished result, or None if PyTorch's convolution must compute it."""
        backend = get_backend()
        if needs_torch(backend, input):
            return None
        check_device("input", input)
        check_same_device("weight", self.own("weight"), "input", input)
        stride, dilation = pair("stride", self.stride), pair("dilation", self.dilation)
        geometry = (stride, sides, dilation)
        if measures(backend, input):
            described = Options(*geometry, self.groups, allows_tf32(input))
            if not self._measured_native(input, residual, described):
                return None
            backend = "native"
        # The weight gets no local name here: PackedWeight counts the references to it.
        parameters = self.__dict__["_parameters"]
        points = winograd_points(backend, input, parameters["weight"], *geometry, frozen=True)
        packed = self.packed.of(parameters, "weight", points=points) if points else None
        if packed is None:
            rule = "native" if backend == "auto" and self._widens(input.dtype) else backend
            clips = self.relu and residual is None
            weight = parameters["weight"]
            if torch_computes(rule, input, weight, None, *geometry, packed=True, clips=clips):
                return None
            del weight
            packed = self.packed.of(parameters, "weight", self.groups)
        options = (*geometry, self.groups, allows_tf32(input), packed)
        output: Tensor = convolve_fused(
            input, parameters["weight"], parameters["bias"], residual, self.relu, *options
        )
        return output

    def _measured_native(self, input: Tensor, residual: Tensor | None, options: Options) -> bool:
        """Whether the fused kernel was right, and faster than PyTorch's separate operators."""
        # Traced calls and calls under autocast use the plain convolution.
        if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
            return False
        ends = ("residual" if residual is not None else "", "relu" if self.relu else "")
        operands = Operands(input, self.own("weight"), self.own("bias"), residual=residual)
        ending = " and ".join(filter(None, ends))
        return not knows_torch_only() and runs_natively(FUSED, operands, options, ending)

    def _widens(self, dtype: torch.dtype) -> bool:
        """Whether the store costs much beside the product, as in a residual unit's last layer.

        Such a layer gains more from residual and ReLU in the store than the rule of "auto" knows,
        because that rule was measured on plain layers. In bfloat16 measurements showed no such
        gain.
        """
        pointwise = self.kernel_size == (1, 1) and self.groups == 1 and dtype == torch.float32
        return pointwise and self.in_channels >= 64 and self.out_channels >= 4 * self.in_channels


class _BranchWeights(Lender, nn.ParameterList):
    """The filters of an ASPP's branches, with their packed forms."""

    packed: list[PackedWeight]

    def packed_weights(self) -> Iterable[PackedWeight]:
        packed: list[PackedWeight] = self.__dict__.get("packed", [])
        return packed

    def all(self) -> list[Tensor]:
        return [self.own(str(branch)) for branch in range(len(self))]


def _check_devices(weights: Sequence[Tensor], input: Tensor) -> None:
    for index, weight in enumerate(weights):
        check_same_device(f"weights[{index}]", weight, "input", input)


class FusedASPP(nn.Module):
    """An ASPP with one operator for all branches. The pooled branch becomes a bias of each image.

    ``nn.aspp.split_projection`` says why the pooled branch can be a bias.
    """

    def __init__(
        self,
        branches: Sequence[FusedConv2d],
        pooled: FusedConv2d,
        project: FusedConv2d,
    ) -> None:
        super().__init__()
        self.weights = _BranchWeights([branch.own("weight") for branch in branches])
        self.weights.packed = [branch.packed for branch in branches]
        biases = [branch.bias for branch in branches]
        self.bias = frozen(torch.cat([bias for bias in biases if bias is not None]))
        self.dilations = [branch.dilation[0] for branch in branches]
        self.pooled = pooled
        width = sum(branch.out_channels for branch in branches)
        weight, pooled_weight = split_projection(project.weight, width)
        self.pooled_weight = frozen(pooled_weight)
        project.weight = frozen(weight)
        project.in_channels = width
        self.project = project

    def forward(self, input: Tensor) -> Tensor:
        _check_devices(self.weights.all(), input)
        pooled = self.pooled(input.mean((2, 3), keepdim=True))
        residual = F.conv2d(pooled, self.pooled_weight).expand(-1, -1, *input.shape[2:])
        if _wants_gradient(input):
            weights = self.weights.all()
            biases = self.bias.split([weight.shape[0] for weight in weights])
            branches = multi_rate_conv2d(input, weights, list(biases), self.dilations).relu()
        elif not needs_torch(get_backend(), input):
            tf32 = allows_tf32(input)
            ensure_right("multi_rate_conv2d", input)
            packed = [self._pack(input, branch) for branch in range(len(self.weights))]
            whole = [p for p in packed if p is not None]
            branches = multi_rate_conv2d_relu(
                input,
                self.weights.all(),
                self.bias,
                self.dilations,
                False,
                tf32,
                whole if len(whole) == len(packed) else [],
            )
        else:
            branches = self._one_by_one(input).relu_()
        result: Tensor = self.project(branches, residual)
        return result

    def _pack(self, input: Tensor, branch: int) -> Tensor | None:
        weight, rate = self.weights.own(str(branch)), self.dilations[branch]
        rows, columns = (rate * (taps // 2) for taps in weight.shape[2:])
        geometry = ((1, 1), (rows, columns, rows, columns), (rate, rate))
        points = winograd_points(get_backend(), input, weight, *geometry, frozen=True)
        del weight
        parameters = self.weights.__dict__["_parameters"]
        return self.weights.packed[branch].of(parameters, str(branch), points=points)

    def _one_by_one(self, input: Tensor) -> Tensor:
        """Returns the branches' results, computed by one PyTorch convolution each."""
        branches, first = [], 0
        for weight, rate in zip(self.weights.all(), self.dilations, strict=True):
            last = first + weight.shape[0]
            padding = rate * (weight.shape[-1] // 2)
            branches.append(atrous_conv2d(input, weight, self.bias[first:last], 1, padding, rate))
            first = last
        return torch.cat(branches, 1)
