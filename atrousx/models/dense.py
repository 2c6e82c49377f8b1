"""Any classification network as a dense feature extractor: strides traded for atrous rates."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..nn import replace_convs
from ..ops._check import pair
from .export import shared_copy

# Layers that treat every pixel alike, or normalise per channel: right at any density.
POINTWISE = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.LayerNorm,
    nn.Linear,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.Mish,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
)
FUNCTIONS = {
    *(operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul),
    *(torch.cat, torch.relu, torch.sigmoid, torch.permute),
    *(F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.layer_norm, F.dropout),
}
METHODS = {"add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "permute", "contiguous"}
# Along the channels these are pointwise, too.
SPLITS = {torch.split, torch.chunk, "split", "chunk"}
# What depends on the mode must stay a module: a trace would fix the mode of now.
DROPS = ("StochasticDepth", "DropPath")
POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)


class Density(NamedTuple):
    """Image pixels per feature of a map, and how much denser it is than in the classifier."""

    stride: int = 1
    factor: int = 1


class DilatedAvgPool2d(nn.Module):
    """The mean over ``kernel`` x ``kernel`` pixels ``rate`` apart, at stride 1."""

    def __init__(self, kernel: tuple[int, int], rate: int) -> None:
        super().__init__()
        self.kernel, self.rate = kernel, rate

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.kernel
        height = input.shape[-2] - (rows - 1) * self.rate
        width = input.shape[-1] - (columns - 1) * self.rate
        total = torch.zeros_like(input[..., :height, :width])
        for i in range(0, rows * self.rate, self.rate):
            for j in range(0, columns * self.rate, self.rate):
                total = total + input[..., i : i + height, j : j + width]
        return total / (rows * columns)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of what is pointwise (timm's normalisation with its activation) are that, too.
        known = type(m).__name__ in DROPS or isinstance(m, POINTWISE)
        return known or super().is_leaf_module(m, module_qualified_name)


class _Densifier:
    """Walks through a traced classifier in execution order and changes its strided layers."""

    def __init__(self, traced: fx.GraphModule, output_stride: int) -> None:
        self.traced, self.output_stride = traced, output_stride
        self.densities: dict[fx.Node, Density | None] = {}
        self.changed: set[str] = set()
        # Parameters, and what is computed of them alone.
        self.constants: set[fx.Node] = set()
        self.reachable = {1}

    def run(self) -> fx.Node:
        """Changes the layers up to the classifier's pooling; returns the features' node."""
        for node in list(self.traced.graph.nodes):
            if node.op == "output":
                break
            if node.op != "placeholder" and self.constants.issuperset(node.all_input_nodes):
                self.constants.add(node)
                self.densities[node] = None
                continue
            if self._ends(node):
                self._check_rest(node)
                return self._features(node)
            self.densities[node] = self._density(node)
        raise self._refusal("it never pools its features, so it is no classification network")

    def _ends(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.traced.get_submodule(str(node.target)), nn.Flatten)
        if node.target in (torch.mean, "mean"):
            return not _keeps_dimensions(node)
        return node.target in (torch.flatten, "flatten", "view", "reshape")

    def _check_rest(self, end: fx.Node) -> None:
        nodes = list(self.traced.graph.nodes)
        for node in nodes[nodes.index(end) :]:
            layer = (
                self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) != {1}:
                raise self._refusal(f"{end.name} flattens its features before {node.target}")

    def _features(self, node: fx.Node) -> fx.Node:
        current = node.args[0]
        while isinstance(current, fx.Node) and self.densities.get(current) is None:
            current = current.args[0] if current.args else None
        if not isinstance(current, fx.Node):
            raise self._refusal(f"{node.name} does not follow a pooling")
        return current

    def _density(self, node: fx.Node) -> Density | None:
        if node.op == "placeholder":
            return Density()
        found = {d for d in map(self.densities.get, node.all_input_nodes) if d is not None}
        if not found:
            return None
        if len(found) > 1:
            raise self._refusal(f"{node.name} joins maps of different strides")
        density = found.pop()
        if node.op == "call_module":
            return self._layer(node, self.traced.get_submodule(str(node.target)), density)
        if node.target in POOL_FUNCTIONS or _averages_map(node):
            self._sample(node, density)
            return None
        if _along_channels(node):
            return density
        allowed = METHODS if node.op == "call_method" else FUNCTIONS
        if node.target not in allowed:
            what = f"{node.args[1]} of {node.args[0]}" if node.target is getattr else node.name
            raise self._refusal(f"the operation {what} may depend on the size of the map")
        return density

    def _layer(self, node: fx.Node, layer: nn.Module, density: Density) -> Density | None:
        if isinstance(layer, POOLS):
            self._sample(node, density)
            return None
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            return self._window(node, layer, density)
        if isinstance(layer, POINTWISE) or type(layer).__name__ in DROPS:
            return density
        raise self._refusal(f"its layer {node.target} is a {type(layer).__name__}")

    def _sample(self, node: fx.Node, density: Density) -> None:
        """Lets a pooling over the whole map, as in squeeze-and-excitation, see what it saw."""
        if density.factor > 1:
            every = slice(None, None, density.factor)
            with self.traced.graph.inserting_before(node):
                index = cast(Any, (Ellipsis, every, every))
                sampled = self.traced.graph.call_function(operator.getitem, (node.args[0], index))
            node.replace_input_with(cast(fx.Node, node.args[0]), sampled)

    def _window(
        self, node: fx.Node, layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, density: Density
    ) -> Density:
        name = str(node.target)
        stride, across = pair("stride", cast(Any, layer.stride))
        if stride != across:
            raise self._refusal(f"its layer {name} has stride {(stride, across)}")
        # Once a stride has gone, those after it have to go as well.
        keeps = density.factor == 1 and density.stride * stride <= self.output_stride
        if density.factor == 1:
            self.reachable.add(density.stride * stride)
        if keeps:
            return Density(density.stride * stride)
        if density.factor == 1 and stride == 1:
            return density
        if name in self.changed or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise self._refusal(f"its layer {name} runs twice or does not pad with zeros")
        self.changed.add(name)
        extra = self._dilate(name, layer, density.factor, stride > 1)
        if any(extra):
            value = float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0
            with self.traced.graph.inserting_before(node):
                padded = self.traced.graph.call_function(
                    F.pad, (node.args[0], extra), {"value": value}
                )
            node.replace_input_with(cast(fx.Node, node.args[0]), padded)
        return Density(density.stride, density.factor * stride)

    def _dilate(
        self, name: str, layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, factor: int, strided: bool
    ) -> tuple[int, int, int, int]:
        """Spreads a window's taps; returns the padding that goes in front of the layer.

        Where a stride is removed the size is kept: an even window is extended at the end.
        """
        kernel = pair("kernel_size", cast(Any, layer.kernel_size))
        if layer.padding == "same":
            raise self._refusal(f"its layer {name} pads 'same'")
        padding = pair("padding", cast(Any, 0 if layer.padding == "valid" else layer.padding))
        dilation = 1 if isinstance(layer, nn.AvgPool2d) else layer.dilation
        rate, _ = pair("dilation", cast(Any, dilation))
        before = [p * factor for p in padding]
        whole = [(k - 1) * rate * factor for k in kernel]
        after = [max(b, w - b) if strided else b for b, w in zip(before, whole, strict=True)]
        if isinstance(layer, nn.Conv2d):
            layer.stride, layer.dilation = (1, 1), (rate * factor, rate * factor)
            layer.padding = (before[0], before[1])
            return (0, after[1] - before[1], 0, after[0] - before[0])
        dilated: nn.Module
        if isinstance(layer, nn.MaxPool2d):
            dilated = nn.MaxPool2d(kernel, 1, 0, rate * factor)
        elif any(padding):
            raise self._refusal(f"its layer {name} averages padding")
        else:
            dilated = DilatedAvgPool2d(kernel, factor)
        parent, _, leaf = name.rpartition(".")
        setattr(self.traced.get_submodule(parent), leaf, dilated)
        return (before[1], after[1], before[0], after[0])

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"classifier cannot be made dense: {reason}")


def _keeps_dimensions(node: fx.Node) -> bool:
    return bool(node.kwargs.get("keepdim") or node.args[2:3] == (True,))


def _averages_map(node: fx.Node) -> bool:
    """Whether a node is a mean over height and width that stays a map, of one pixel."""
    if node.target not in (torch.mean, "mean") or not _keeps_dimensions(node):
        return False
    dims: Any = (node.args[1:2] or (node.kwargs.get("dim"),))[0]
    return isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]


def _along_channels(node: fx.Node) -> bool:
    """Whether a node takes channels apart, or takes such a part."""
    if node.target in SPLITS:
        return bool((node.args[2:] or (node.kwargs.get("dim"),))[0] == 1)
    if node.target is not operator.getitem:
        return False
    source, index = node.args
    if isinstance(index, int):
        return isinstance(source, fx.Node) and source.target in SPLITS
    return isinstance(index, tuple) and all(part == slice(None) for part in (index[0], *index[2:]))


def to_dense(classifier: nn.Module, output_stride: int = 8) -> nn.Module:
    r"""Turns a classification network into a dense feature extractor, without new parameters.

    Layers are taken in execution order (``torch.fx``). Strides that would exceed the output stride
    are removed; every later convolution and pooling has its dilation and padding multiplied by what
    was removed, s. What the classifier computes before its last pooling is among the new features:

    .. math:: F_{dense}(x)_{n, c, s i, s j} = F_{classifier}(x)_{n, c, i, j}

    up to rounding, where the image's sizes are multiples of the classifier's stride, and else away
    from the borders. Squeeze-and-excitation pools over these positions alone, so that the law holds
    for it, too. Networks that work, of torchvision: ResNet, ResNeXt, VGG, MobileNetV2 and V3,
    EfficientNet, DenseNet, ConvNeXt, RegNet; of timm: these but VGG, and SE-ResNet, MobileNetV4,
    EfficientNetV2, MNASNet, MixNet, GhostNet, RexNet, RepVGG, ResNetV2, Xception, DPN, DLA and
    DarkNet. Transformers, and what normalises over the map or pads by its size (ConvNeXt V2, the
    ``tf_`` networks) are refused by name.

    Args:
        classifier: a network of convolutions and poolings that ends in a pooling, flattening and
            linear layers; left as it is.
        output_stride: image pixels per feature: 1 or a product of the network's first strides.

    Returns:
        A module from images ``[N, 3, H, W]`` to features ``[N, C, H', W']``, in the classifier's
        mode, its parameters and buffers shared, its convolutions atrousx's.

    Raises:
        TypeError: ``classifier`` is not a ``torch.nn.Module``.
        ValueError: it cannot be traced, has a layer for which the law cannot hold (the message
            names it), or does not reach the output stride.

    Source: arXiv:1412.7062 section 3.1, the "hole algorithm".

    Example:
        >>> import torch, atrousx
        >>> from torch import nn
        >>> classifier = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> dense = atrousx.models.to_dense(classifier, output_stride=2)
        >>> dense(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 8, 12, 12])
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
    copy = shared_copy(classifier)
    try:
        graph = _Tracer().trace(copy)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"classifier cannot be traced by torch.fx: {reason}") from error
    traced = fx.GraphModule(copy, graph)
    densifier = _Densifier(traced, output_stride)
    features = densifier.run()
    density = densifier.densities[features]
    if density is None or density.stride != output_stride:
        allowed = ", ".join(map(str, sorted(densifier.reachable)))
        raise ValueError(f"output_stride must be one of {allowed} here, got {output_stride!r}")
    _cut(traced, features)
    traced.train(classifier.training)
    return replace_convs(traced)


def _cut(traced: fx.GraphModule, features: fx.Node) -> None:
    """Makes a node the result and drops what comes after it."""
    graph = traced.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (features,)
    graph.eliminate_dead_code()
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
