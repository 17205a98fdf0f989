"""What a served model does with the user's data, calibrations and overlaps, as figures and as pictures."""

from submerge.report._calibration_picture import draw_calibration
from submerge.report._figure import check_picture
from submerge.report._inspection_picture import draw_inspection
from submerge.report._inspection_summary import OverlapSummary, by_kind, by_layer, by_model, by_pair
from submerge.report._null_space_picture import draw_curve, draw_null_space
from submerge.report._picture import draw
from submerge.report._survey import Survey, survey

__all__ = [
    "OverlapSummary",
    "Survey",
    "by_kind",
    "by_layer",
    "by_model",
    "by_pair",
    "check_picture",
    "draw",
    "draw_calibration",
    "draw_curve",
    "draw_inspection",
    "draw_null_space",
    "survey",
]
