"""Turns a classification network into a dense feature extractor: trades strides for rates."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from ...nn import replace_convs
from ...ops._check import pair
from ..export import shared_copy
from .operations import (
    POOLS,
    Window,
    is_pointwise,
    keeps_dimensions,
    pools_map,
    refusal,
    spread,
    treats_pixels_alike,
)


class Density(NamedTuple):
    """Image pixels per feature of a map, and how many times denser than in the classifier it is."""

    stride: int = 1
    factor: int = 1


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of pointwise layers, like timm's normalisation with activation, are pointwise.
        return is_pointwise(m) or super().is_leaf_module(m, module_qualified_name)


class _Densifier:
    """Walks through a traced classifier in execution order and changes its strided layers."""

    def __init__(self, traced: fx.GraphModule, output_stride: int) -> None:
        self.traced, self.output_stride = traced, output_stride
        self.densities: dict[fx.Node, Density | None] = {}
        self.changed: set[str] = set()
        # Parameters, and values that are computed only from parameters.
        self.constants: set[fx.Node] = set()
        self.reachable = {1}

    def run(self) -> fx.Node:
        """Changes the layers up to the classifier's pooling, and returns the features' node."""
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
        raise refusal("it never pools its features, so it is no classification network")

    def _ends(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.traced.get_submodule(str(node.target)), nn.Flatten)
        if node.target in (torch.mean, "mean"):
            return not keeps_dimensions(node)
        return node.target in (torch.flatten, "flatten", "view", "reshape")

    def _check_rest(self, end: fx.Node) -> None:
        nodes = list(self.traced.graph.nodes)
        for node in nodes[nodes.index(end) :]:
            layer = (
                self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) != {1}:
                raise refusal(f"{end.name} flattens its features before {node.target}")

    def _features(self, node: fx.Node) -> fx.Node:
        current = node.args[0]
        while isinstance(current, fx.Node) and self.densities.get(current) is None:
            current = current.args[0] if current.args else None
        if not isinstance(current, fx.Node):
            raise refusal(f"{node.name} does not follow a pooling")
        return current

    def _density(self, node: fx.Node) -> Density | None:
        if node.op == "placeholder":
            return Density()
        found = {d for d in map(self.densities.get, node.all_input_nodes) if d is not None}
        if not found:
            return None
        if len(found) > 1:
            raise refusal(f"{node.name} joins maps of different strides")
        density = found.pop()
        if node.op == "call_module":
            return self._layer(node, self.traced.get_submodule(str(node.target)), density)
        if pools_map(node):
            self._sample(node, density)
            return None
        if treats_pixels_alike(node):
            return density
        what = f"{node.args[1]} of {node.args[0]}" if node.target is getattr else node.name
        raise refusal(f"the operation {what} may depend on the size of the map")

    def _layer(self, node: fx.Node, layer: nn.Module, density: Density) -> Density | None:
        if isinstance(layer, POOLS):
            self._sample(node, density)
            return None
        if isinstance(layer, Window):
            return self._window(node, layer, density)
        if is_pointwise(layer):
            return density
        raise refusal(f"its layer {node.target} is a {type(layer).__name__}")

    def _sample(self, node: fx.Node, density: Density) -> None:
        """Makes a pooling over the whole map read only the positions that the classifier has.

        Squeeze-and-excitation has such a pooling.
        """
        if density.factor > 1:
            every = slice(None, None, density.factor)
            with self.traced.graph.inserting_before(node):
                index = cast(Any, (Ellipsis, every, every))
                sampled = self.traced.graph.call_function(operator.getitem, (node.args[0], index))
            node.replace_input_with(cast(fx.Node, node.args[0]), sampled)

    def _window(self, node: fx.Node, layer: Window, density: Density) -> Density:
        name = str(node.target)
        stride, across = pair("stride", cast(Any, layer.stride))
        if stride != across:
            raise refusal(f"its layer {name} has stride {(stride, across)}")
        # After the first removed stride all later strides must be removed, too.
        keeps = density.factor == 1 and density.stride * stride <= self.output_stride
        if density.factor == 1:
            self.reachable.add(density.stride * stride)
        if keeps:
            return Density(density.stride * stride)
        if density.factor == 1 and stride == 1:
            return density
        if name in self.changed or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise refusal(f"its layer {name} runs twice or does not pad with zeros")
        self.changed.add(name)
        window, extra = spread(name, layer, density.factor, stride > 1)
        parent, _, leaf = name.rpartition(".")
        setattr(self.traced.get_submodule(parent), leaf, window)
        if any(extra):
            value = float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0
            with self.traced.graph.inserting_before(node):
                padded = self.traced.graph.call_function(
                    F.pad, (node.args[0], extra), {"value": value}
                )
            node.replace_input_with(cast(fx.Node, node.args[0]), padded)
        return Density(density.stride, density.factor * stride)


def to_dense(classifier: nn.Module, output_stride: int = 8) -> nn.Module:
    r"""Turns a classification network into a dense feature extractor, without new parameters.

    The function goes through the layers in execution order (``torch.fx``). It removes the strides
    that would exceed the output stride. It multiplies the dilation and padding of every later
    convolution and pooling by the strides that were removed before it. The new features contain
    those that the classifier computes before its last pooling. With s the product of all removed
    strides:

    .. math:: F_{dense}(x)_{n, c, s i, s j} = F_{classifier}(x)_{n, c, i, j}

    This holds up to rounding if the image's sizes are multiples of the classifier's stride.
    Otherwise it holds away from the borders. Squeeze-and-excitation pools only over these
    positions, so that the equation holds for it, too.

    These networks of torchvision work: ResNet, ResNeXt, VGG, MobileNetV2 and V3, EfficientNet,
    DenseNet, ConvNeXt and RegNet. The same networks of timm work, except VGG. In addition these of
    timm work: SE-ResNet, MobileNetV4, EfficientNetV2, MNASNet, MixNet, GhostNet, RexNet, RepVGG,
    ResNetV2, Xception, DPN, DLA and DarkNet. The function refuses transformers, and networks that
    normalise over the map or pad by the map's size (ConvNeXt V2, the ``tf_`` networks).

    Args:
        classifier: a network of convolutions and poolings that ends in a pooling, flattening and
            linear layers. It does not change.
        output_stride: image pixels per feature: 1 or a product of the network's first strides.

    Returns:
        A module that maps images ``[N, 3, H, W]`` to features ``[N, C, H', W']``. It shares the
        classifier's parameters and buffers, starts in the classifier's mode and uses atrousx's
        convolutions.

    Raises:
        TypeError: ``classifier`` is not a ``torch.nn.Module``.
        ValueError: the classifier cannot be traced, does not reach the output stride, or has a
            layer for which the equation cannot hold. The message names the layer.

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
    """Makes a node the graph's result and removes everything after it."""
    graph = traced.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (features,)
    graph.eliminate_dead_code()
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
