"""What ``atrousx evaluate`` writes: numbers, plots and a page."""

from .files import Outputs
from .pictures import Extremes
from .results import Results, as_json, text_table

__all__ = ["Extremes", "Outputs", "Results", "as_json", "text_table"]
