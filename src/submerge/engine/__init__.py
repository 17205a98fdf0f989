"""Plan, then run: from a recipe to a checkpoint."""

from submerge.engine._merge import merge
from submerge.engine._plan import MergePlan, Settings, make_plan
from submerge.engine._report import MergeReport, Progress
from submerge.engine._states import merge_state_dicts
from submerge.engine._tensor import Input, TensorPlan

__all__ = ["Input", "MergePlan", "MergeReport", "Progress", "Settings", "TensorPlan", "make_plan", "merge", "merge_state_dicts"]
