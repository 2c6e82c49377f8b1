"""A frozen weight as the CPU's kernels read it, packed once instead of at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_pack_weight = torch.ops.atrousx._atrous_conv2d_pack_weight.default


class PackedWeight:
    """Keeps the packed form of one weight, and packs anew when the weight has changed.

    The packed form depends on the CPU: it is neither copied nor stored with its module.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, ()

    def of(self, weight: Tensor, groups: int = 1) -> Tensor | None:
        """The packed form for a call that happens now; None where kernels take the weight itself.

        That is on GPUs, under autocast, which would round it, and in code that is traced.
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
        if key != self._key:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = _pack_weight(weight, groups)
            self._key = key
        return self._packed
