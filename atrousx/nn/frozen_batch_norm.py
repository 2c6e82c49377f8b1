"""Batch normalisation by the running statistics only, in training too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenBatchNorm2d(_NormBase):
    """A ``torch.nn.BatchNorm2d`` that stays in evaluation mode, even after ``train()``.

    It is no subclass of ``nn.BatchNorm2d``: ``SyncBatchNorm.convert_sync_batchnorm`` would replace
    it by a layer that computes the statistics of batches again.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, input: Tensor) -> Tensor:
        # Without running statistics those of the batch are used, as nn.BatchNorm2d does.
        by_batch = self.running_mean is None
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=by_batch,
            eps=self.eps,
        )
