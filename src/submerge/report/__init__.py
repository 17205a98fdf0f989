"""What a served model does with the user's data, as figures and as pictures; and pictures of calibrations."""

from submerge.report._calibration_picture import draw_calibration
from submerge.report._figure import check_picture
from submerge.report._null_space_picture import draw_curve, draw_null_space
from submerge.report._picture import draw
from submerge.report._survey import Survey, survey

__all__ = ["Survey", "check_picture", "draw", "draw_calibration", "draw_curve", "draw_null_space", "survey"]
