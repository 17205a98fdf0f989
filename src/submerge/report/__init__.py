"""What a served model does with the user's data, as figures and as a picture."""

from submerge.report._picture import draw
from submerge.report._survey import Survey, survey

__all__ = ["Survey", "draw", "survey"]
