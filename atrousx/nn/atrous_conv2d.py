"""A torch.nn.Conv2d that computes with atrousx's convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import atrous_conv2d
from ..ops._check import FLOATING

if TYPE_CHECKING:
    from typing_extensions import Self


class AtrousConv2d(nn.Conv2d):
    r"""A ``torch.nn.Conv2d`` whose convolution never multiplies padding.

    .. math::
        y_{n,k,o_h,o_w} = b_k + \sum_{c,i,j} w_{k,c,i,j}\;
        x_{n,\,c,\,o_h s - p + i d,\;o_w s - p + j d}

    with stride :math:`s`, padding :math:`p` and dilation (the atrous rate) :math:`d`. The class
    inherits constructor, initialisation, attributes, ``state_dict`` and pickling from
    ``nn.Conv2d``, and ``isinstance(layer, torch.nn.Conv2d)`` is true. Only the computation differs:
    it calls :func:`atrousx.ops.atrous_conv2d`. With the padding modes "reflect", "replicate" and
    "circular" the layer first pads the input, as in PyTorch. It then convolves without padding.

    Args:
        in_channels: channels of the input.
        out_channels: number of filters, which is the number of output channels.
        kernel_size: height and width of a filter, in taps: one int for both, or a pair. The same
            holds for ``stride``, ``padding`` and ``dilation``.
        stride: input pixels from one output pixel to the next.
        padding: pixels added to each side, or "same" (stride 1 only), or "valid" for none.
        dilation: input pixels from one tap to the next.
        groups: number of groups of channels that are convolved separately. It must divide both
            channel counts.
        bias: whether the layer has a bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, float16 or bfloat16.

    Shape:
        Input ``[N, C, H, W]`` or ``[C, H, W]``; output ``[N, K, OH, OW]`` or ``[K, OH, OW]`` with
        ``OH = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        ValueError, TypeError, RuntimeError: when called with an input that does not fit, as in
            :func:`atrousx.ops.atrous_conv2d`.

    Source: "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
    arXiv:1412.7062, section 3.1.

    Example:
        >>> import torch, atrousx
        >>> layer = atrousx.AtrousConv2d(64, 32, 3, padding=6, dilation=6)
        >>> layer(torch.rand(1, 64, 33, 33)).shape
        torch.Size([1, 32, 33, 33])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding  # PyTorch's annotation allows any string
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return atrous_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> Self:
        """Returns a layer that shares everything with an existing ``torch.nn.Conv2d``.

        The new layer holds the same ``Parameter`` objects, so both layers train together. It starts
        in the same mode, training or evaluation. Hooks are shared too: they also run on the new
        layer. The handles that PyTorch returned for the hooks still remove them. ``conv`` does not
        change.

        Raises:
            TypeError: ``conv`` is not exactly a ``torch.nn.Conv2d``, its parameters are not
                floating-point ``torch.nn.Parameter``, or its ``forward`` was replaced. Transposed,
                quantised, 1-d and 3-d convolutions and subclasses are refused, because they may
                compute something else.
            ValueError: the weight is computed from other tensors before each call
                (parametrisation, weight norm, spectral norm, pruning), or the layer is lazy and
                has no weight yet.

        Example:
            >>> import torch, atrousx
            >>> conv = torch.nn.Conv2d(3, 8, 3, dilation=2)
            >>> atrousx.AtrousConv2d.from_conv(conv).weight is conv.weight
            True
        """
        refusal = why_not_served(conv)
        if refusal is not None:
            raise refusal
        # A compiled call runs the module that it was compiled from, not the new one.
        state = {k: v for k, v in conv.__dict__.items() if k != "_compiled_call_impl"}
        for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            state[own] = state[own].copy()
        layer = cls.__new__(cls)
        layer.__dict__.update(state)
        return layer


def why_not_served(conv: object) -> Exception | None:
    """Returns the error that ``from_conv`` raises for a layer, or None if it accepts the layer."""
    name = f"{type(conv).__module__}.{type(conv).__qualname__}"
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin) and isinstance(conv, nn.Conv2d):
        return ValueError(
            f"conv must have its weight, got a {name} that has not seen an input yet: "
            "call it once, then convert it"
        )
    if isinstance(conv, nn.Conv2d) and (
        nn.utils.parametrize.is_parametrized(conv) or "weight" not in conv._parameters
    ):
        return ValueError(
            f"conv must hold its weight as a parameter, got a {name} that computes it before "
            "each call (parametrisation, weight norm, spectral norm or pruning): remove that "
            "first, or convert before adding it"
        )
    if type(conv) not in (nn.Conv2d, AtrousConv2d):
        return TypeError(
            f"conv must be exactly a torch.nn.Conv2d, got {name}: "
            "other layers and subclasses may compute something else"
        )
    assert isinstance(conv, nn.Conv2d)
    if "forward" in conv.__dict__ or "_conv_forward" in conv.__dict__:
        return TypeError(
            "conv must compute what torch.nn.Conv2d does, got one with its own forward"
        )
    for parameter in conv._parameters.values():
        # Subclasses of Tensor (quantised, sharded) store their values in another form.
        if parameter is not None and (
            type(parameter) is not nn.Parameter or parameter.dtype not in FLOATING
        ):
            return TypeError(
                "conv must have float32, float64, float16 or bfloat16 torch.nn.Parameter, "
                f"got {type(parameter).__name__} of {str(parameter.dtype)[6:]}"
            )
    return None


def hooked(*modules: nn.Module) -> bool:
    """Whether one of the modules has a forward or backward hook."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    )
