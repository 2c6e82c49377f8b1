"""A frozen weight as the CPU's kernels read it, made once instead of at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_pack_weight = torch.ops.atrousx._atrous_conv2d_pack_weight.default


class PackedWeight:
    """Keeps the packed forms of one weight, and packs anew when the weight has changed.

    A packed form depends on the CPU: it is neither copied nor stored with its module.
    """

    def __init__(self) -> None:
        # By the points they are transformed to: what they were made of, and they themselves.
        self._forms: dict[tuple[int, ...], tuple[tuple[Any, ...], Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, ()

    def of(self, weight: Tensor, groups: int = 1, points: tuple[int, ...] = ()) -> Tensor | None:
        """A packed form for a call that happens now; None where kernels take the weight itself.

        With ``points`` 3x3 filters are transformed to so many, rows and columns: see
        ``csrc/atrous_conv2d/winograd.h``. None comes on GPUs, under autocast, which would round it,
        and in code that is traced.
        """
        if (
            weight.device.type != "cpu"
            or type(weight) is not nn.Parameter
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        version = 0 if weight.is_inference() else weight._version
        key = (weight.data_ptr(), version, weight.dtype, weight.shape, weight.stride())
        made_of, packed = self._forms.get(points, ((), None))
        if packed is None or key != made_of:
            with torch.inference_mode(False), torch.no_grad():
                packed = _pack_weight(weight, groups, points)
            self._forms[points] = key, packed
        return packed
