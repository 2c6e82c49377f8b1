"""Checks on this machine that every operator is right, and times atrousx against PyTorch.

The command is ``atrousx doctor``. Every operator of ``torch.ops.atrousx``, private ones included,
runs forward and backward in every dtype and layout on every device. The results are compared with
the CPU's operators in float64. The CPU's float64 results are compared with plain PyTorch.
``accuracy.py`` defines when a result is right. Each check runs twice and must give the same bits.
In the first run, new memory is filled with NaN.
"""

from .examination import Findings, Report, examine
from .report import as_json, as_text

__all__ = ["Findings", "Report", "as_json", "as_text", "examine"]
