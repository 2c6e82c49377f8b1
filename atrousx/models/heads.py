"""Heads that several models have, and the layers of heads that make logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from ..nn import AtrousConv2d
from ..ops import multi_rate_conv2d


class SummedBranches(nn.Module):
    r"""Atrous spatial pyramid pooling as in DeepLab v2: the sum of parallel branches.

    .. math:: y = \sum_i B_{r_i}(x)

    A branch is one 3x3 convolution with bias at its rate, or VGG's layers fc6, fc7 and fc8.
    """

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, input: Tensor) -> Tensor:
        if all(isinstance(branch, AtrousConv2d) for branch in self.branches):
            convs = self.last_layers()
            weights = [conv.weight for conv in convs]
            biases = [cast(Tensor, conv.bias) for conv in convs]
            rates = [conv.dilation[0] for conv in convs]
            return multi_rate_conv2d(input, weights, biases, rates, reduce="sum")
        total: Tensor = self.branches[0](input)
        for branch in self.branches[1:]:
            total = total + branch(input)
        return total

    def last_layers(self) -> list[AtrousConv2d]:
        """Returns the convolutions that make the logits, one for each branch."""
        layers = (b[-1] if isinstance(b, nn.Sequential) else b for b in self.branches)
        return [cast(AtrousConv2d, layer) for layer in layers]


def last_layers(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the convolutions that make the logits."""
    names = []
    for name, head in model.named_modules():
        if name in ("classifier", "aux_classifier") and isinstance(head, nn.Sequential):
            names.append(f"{name}.{len(head) - 1}")
        if isinstance(head, SummedBranches):
            wanted = {id(layer) for layer in head.last_layers()}
            names += [f"{name}.{part}" for part, m in head.named_modules() if id(m) in wanted]
    return tuple(names)
