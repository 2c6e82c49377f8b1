"""Examines atrousx on this machine: is every operator right, and how fast beside PyTorch?

``atrousx doctor`` is its command. Every operator of ``torch.ops.atrousx``, private ones too, runs
forward and backward in every dtype and layout on every device, against the CPU's operators in
float64; the CPU's float64 is held against plain PyTorch. When a result is right says
``accuracy.py``. Each check runs twice: the results must have the same bits, and the first time
fresh memory is full of NaN.
"""

from .examination import Findings, Report, examine
from .report import as_json, as_text

__all__ = ["Findings", "Report", "as_json", "as_text", "examine"]
