"""Bilinear resampling as a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops.upsample_bilinear2d import upsample_bilinear2d


class BilinearUpsample2d(nn.Module):
    r"""Resamples maps bilinearly to a size or by a factor, with a deterministic gradient.

    .. math::
        y_o = (1 - \lambda)\, x_{\lfloor s \rfloor} + \lambda\, x_{\lfloor s \rfloor + 1},
        \qquad s = \max(0, (o + \tfrac12) \tfrac{in}{out} - \tfrac12)

    along each axis in turn. :func:`atrousx.ops.upsample_bilinear2d` documents the details. The
    layer has no parameters.

    Args:
        size: output height and width in pixels; one int for both.
        scale_factor: output size over input size, instead of ``size``; one number for both axes.
        align_corners: if True, the centres of the corner pixels of both maps coincide. If False,
            the borders of the maps coincide.

    Shape:
        Input ``[N, C, H, W]`` in float32, float64, float16 or bfloat16; output ``[N, C, OH, OW]``
        in the same dtype and memory format.

    Raises:
        ValueError: both or neither of ``size`` and ``scale_factor`` were given. A call also raises
            the errors of :func:`atrousx.ops.upsample_bilinear2d`.

    Source: ``torch.nn.Upsample(mode="bilinear")``, which gives the same results.

    Example:
        >>> import torch, atrousx
        >>> atrousx.BilinearUpsample2d(scale_factor=8)(torch.rand(1, 21, 65, 65)).shape
        torch.Size([1, 21, 520, 520])
    """

    # ``models.to_torch`` replaces this function by PyTorch's.
    resample = staticmethod(upsample_bilinear2d)

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError(
                "exactly one of size and scale_factor must be given, "
                f"got size={size!r} and scale_factor={scale_factor!r}"
            )
        self.size = size
        self.scale_factor = scale_factor
        self.align_corners = align_corners

    def forward(self, input: Tensor) -> Tensor:
        return self.resample(input, self.size, self.scale_factor, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        target = (
            f"size={self.size}" if self.size is not None else f"scale_factor={self.scale_factor}"
        )
        return target + (", align_corners=True" if self.align_corners else "")
