"""Finds the layers that use a convolution's result, from traces of each module's own forward."""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..nn.aspp import ASPP, PooledBatchNorm2d
from ..nn.atrous_conv2d import hooked
from ..nn.frozen_batch_norm import FrozenBatchNorm2d

RELUS = {torch.relu, F.relu, "relu", "relu_"}
SUMS = {operator.add, torch.add, "add"}
SUMS_IN_PLACE = {operator.iadd, "add_"}
# A forward that is rewritten may use only these names, its own layers and its own numbers.
HARMLESS = {"torch", "nn", "functional", "F", "relu", "relu_", "add", "add_", "cat"}


class Chain(NamedTuple):
    """``relu(norm(conv(x)) + residual)`` in one forward; all but the convolution are optional."""

    nodes: list[fx.Node]  # in order, the convolution's call first
    residual: fx.Node | None
    relu: bool

    @property
    def conv(self) -> fx.Node:
        return self.nodes[0]

    def contract(self) -> None:
        """Replaces the chain by one call of the convolution, which also takes the residual."""
        graph, last = self.conv.graph, self.nodes[-1]
        # With a residual the call moves to the chain's end: the residual must be computed first.
        with graph.inserting_before(self.conv if self.residual is None else last):
            args = (*self.conv.args, *([] if self.residual is None else [self.residual]))
            call = graph.call_module(str(self.conv.target), args)
        last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)


class _Value(fx.Proxy):
    """A traced value that keeps ``+=`` apart from ``+``; fx alone traces both as ``+``."""


def _in_place(function: Callable[..., object]) -> Callable[[_Value, object], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy(
        "call_function", function, (value, other), {}
    )


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(_Value, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Inlined(NamedTuple):
    """A Sequential whose layers stand in the trace in place of one call of it."""

    layers: nn.Module
    name: str
    nodes: list[fx.Node]

    def restore(self) -> None:
        """Makes it one call again, unless one of its layers has been moved."""
        *inner, last = self.nodes
        graph = last.graph
        present = set(graph.nodes)
        if not present.issuperset(self.nodes) or any(only_user(node) is None for node in inner):
            return
        with graph.inserting_after(last):
            call = graph.call_module(self.name, self.nodes[0].args)
        last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)


class _Forward(fx.Tracer):
    """Traces one module's own forward. Calls of its submodules stay calls, but for Sequentials."""

    def __init__(self) -> None:
        super().__init__()
        self.inlined: list[_Inlined] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_plain_sequential(m)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        before = len(self.graph.nodes)
        result = super().call_module(m, forward, args, kwargs)
        if _is_plain_sequential(m):
            nodes = list(self.graph.nodes)[before:]
            self.inlined.append(_Inlined(m, self.path_of_module(m), nodes))
        return result


class Calls:
    """All calls of layers inside a module, from the forwards of all its submodules.

    A forward that cannot be traced contributes no calls. The layers that it may call are
    ``hidden``: they are not folded.
    """

    def __init__(self, root: nn.Module) -> None:
        self.graphs: dict[nn.Module, fx.Graph] = {}
        self.modules: dict[fx.Node, nn.Module] = {}
        self.of: dict[nn.Module, list[fx.Node]] = defaultdict(list)
        self.owners: dict[fx.Graph, nn.Module] = {}
        self.pure: set[nn.Module] = set()
        # Layers that an untraceable forward may call.
        self.hidden: set[nn.Module] = set()
        self.inlined: dict[fx.Graph, list[_Inlined]] = {}
        inner: set[nn.Module] = set()
        parents = [m for m in root.modules() if m._modules and not _is_container(m)]
        # Sequentials come last, the outer ones first. One is traced by itself only if no trace
        # contains its layers, or an untraceable forward may call it.
        for module in sorted(parents, key=_is_plain_sequential):
            if module not in inner or module in self.hidden:
                inner |= {part.layers for part in self._trace(module)}

    def _trace(self, module: nn.Module) -> list[_Inlined]:
        """Traces a forward, and returns the Sequentials whose layers stand in the trace."""
        before, tracer = dict(module.__dict__), _Forward()
        try:
            graph = module.graph if isinstance(module, fx.GraphModule) else tracer.trace(module)
        except Exception:
            graph = None
        # A trace may add constants to the module, and the forward may assign attributes.
        if _identical(module.__dict__, before):
            self.pure.add(module)
        module.__dict__.clear()
        module.__dict__.update(before)
        if graph is None:
            self.hidden |= set(_within_reach(module))
            return []
        self.graphs[module] = graph
        self.owners[graph] = module
        for node in graph.nodes:
            if node.op == "call_module":
                layer = module.get_submodule(str(node.target))
                self.modules[node] = layer
                self.of[layer].append(node)
        self.inlined[graph] = tracer.inlined
        return tracer.inlined

    def rewritten(self, graph: fx.Graph) -> fx.Graph:
        """Returns a changed graph, in which whole Sequentials are one call again."""
        # The outermost first: then its parts are gone.
        for part in sorted(self.inlined[graph], key=lambda part: part.name.count(".")):
            part.restore()
        return graph

    def follower(
        self, nodes: Sequence[fx.Node], accepts: Callable[[nn.Module], bool]
    ) -> nn.Module | None:
        """Returns the only layer that uses the results of these calls, or None.

        The layer must take nothing else, and all its calls must take one of these results.
        """
        users = [only_user(node) for node in nodes]
        layers = {self.modules.get(user) if user else None for user in users}
        layer = layers.pop() if len(layers) == 1 else None
        if layer is None or not accepts(layer) or set(users) != set(self.of[layer]):
            return None
        pairs = zip(nodes, users, strict=True)
        plain = all(user and user.args == (node,) and not user.kwargs for node, user in pairs)
        return layer if plain and all(map(self._understood, nodes)) else None

    def _understood(self, node: fx.Node) -> bool:
        """Whether the trace is right for every call: optional arguments may change the path."""
        owner = self.owners[node.graph]
        if isinstance(owner, fx.GraphModule):
            return True
        parameters = inspect.signature(owner.forward).parameters.values()
        return all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)

    def chain(self, conv: nn.Module, ends: Sequence[fx.Node]) -> Chain | None:
        """Returns the chain that starts at a convolution, or None if there is none to contract.

        The convolution must be called once, in a forward that can be rewritten. ``ends`` are the
        nodes after which sum and ReLU may follow: the calls of the normalisation, if there is one,
        otherwise those of the convolution.
        """
        if len(ends) != 1 or not self._is_writable(self.of[conv]):
            return None
        (node,), (end,) = self.of[conv], ends
        nodes = [node] if end is node else [node, end]
        added = self._sum_of(node, end)
        residual = None if added is None else residual_of(added, end)
        if added is not None and residual is not None:
            nodes.append(added)
        user = only_user(nodes[-1])
        relu = user is not None and self._is_relu(user, nodes[-1])
        if user is not None and relu:
            nodes.append(user)
        return Chain(nodes, residual, relu) if nodes[-1] is not end else None

    def _is_writable(self, calls: Sequence[fx.Node]) -> bool:
        """Whether there is one call, with one argument, in a forward that can be rewritten."""
        if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
            return False
        owner = self.owners[calls[0].graph]
        return owner in self.pure and self._understood(calls[0]) and can_be_rewritten(owner)

    def _sum_of(self, conv: fx.Node, end: fx.Node) -> fx.Node | None:
        """Returns the only user of ``end`` if it may be a sum that the convolution can move to."""
        user = only_user(end)
        waits = user is not None and user.op != "call_module" and self._can_wait(conv, user)
        return user if waits else None

    def _can_wait(self, conv: fx.Node, end: fx.Node) -> bool:
        """Whether nothing between a convolution and a sum may change the convolution's input."""
        order = list(conv.graph.nodes)
        between = set(order[order.index(conv) + 1 : order.index(end)])
        users = between.intersection(*(source.users for source in conv.all_input_nodes))
        return all(user in self.modules and _only_reads(self.modules[user]) for user in users)

    def _is_relu(self, node: fx.Node, value: fx.Node) -> bool:
        layer = self.modules.get(node)
        return node.args[:1] == (value,) and (
            node.target in RELUS if layer is None else is_relu(layer)
        )


def only_user(node: fx.Node) -> fx.Node | None:
    """Returns the only node that uses a value; None if there are others or it is the output."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def residual_of(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """Returns what a node adds to a value.

    None if the node does something else or writes the sum into the other operand.
    """
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if node.target in SUMS_IN_PLACE or node.target in SUMS:
        if first is value and isinstance(second, fx.Node) and second is not value:
            return second
        if second is value and isinstance(first, fx.Node) and node.target in SUMS:
            return first
    return None


def _identical(one: dict[str, object], other: dict[str, object]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)


def _is_plain_sequential(module: nn.Module) -> bool:
    return (
        type(module).forward is nn.Sequential.forward
        and "forward" not in module.__dict__
        and len(module._modules) > 0
        and not hooked(module)
    )


def _is_container(module: nn.Module) -> bool:
    """Whether a module has no forward of its own, like ``nn.ModuleList``."""
    return type(module).forward is nn.Module.forward


def _within_reach(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers that a module's own forward may call."""
    for child in module.children():
        yield child
        if _is_container(child):
            yield from _within_reach(child)


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a batch normalisation with running statistics and without hooks."""
    own = isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)) and (
        type(layer) is PooledBatchNorm2d
        or inner_activation(layer) is not None
        or type(layer).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
    )
    frozen = type(layer) is FrozenBatchNorm2d or _is_of(
        layer, "torchvision.ops.misc", "FrozenBatchNorm2d"
    )
    return (
        (own or frozen)
        and getattr(layer, "running_mean", None) is not None
        and "forward" not in layer.__dict__
        and not hooked(layer)
    )


def inner_activation(layer: nn.Module | None) -> nn.Module | None:
    """Returns the activation inside timm's normalisation; None for any other layer."""
    if layer is None or not _is_of(layer, "timm.layers.norm_act", "BatchNormAct2d"):
        return None
    drop, activation = layer.get_submodule("drop"), layer.get_submodule("act")
    return activation if type(drop) is nn.Identity and not hooked(drop, activation) else None


def is_aspp(layer: nn.Module) -> bool:
    """Whether a layer is the ASPP of this package or of torchvision; their parts' names agree."""
    return type(layer) is ASPP or _is_of(layer, "torchvision.models.segmentation.deeplabv3", "ASPP")


def _is_of(layer: nn.Module, module: str, name: str) -> bool:
    # The names are compared because the other package need not be installed.
    return (type(layer).__module__, type(layer).__qualname__) == (module, name)


def _only_reads(layer: nn.Module) -> bool:
    first = next(iter(layer), None) if isinstance(layer, nn.Sequential) else layer
    return isinstance(first, (nn.Conv2d, nn.BatchNorm2d, FrozenBatchNorm2d, nn.AdaptiveAvgPool2d))


def is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU and "forward" not in layer.__dict__ and not hooked(layer)


def can_be_rewritten(module: nn.Module) -> bool:
    """Whether a forward of one argument consists only of its layers, their sums and ReLU.

    Other code may not show in the trace, for instance a test of a type or a switch of a mode.
    """
    if isinstance(module, fx.GraphModule):
        return True
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    if code is None or isinstance(module, nn.Sequential) or "forward" in module.__dict__:
        return False
    plain = {k for k, v in module.__dict__.items() if not callable(v)} | {*module._modules}
    return (
        code.co_argcount == 2
        and not code.co_freevars
        and not code.co_cellvars
        and not any(isinstance(constant, CodeType) for constant in code.co_consts)
        and set(code.co_names) <= HARMLESS | plain
    )
