"""Plan, then run: from a recipe to a checkpoint."""

from submerge.engine._adapter_form import stores_transposed
from submerge.engine._describe import describe, explain
from submerge.engine._estimate import compute_seconds
from submerge.engine._extract import extract_lora
from submerge.engine._merge import merge
from submerge.engine._peft import merge_adapters
from submerge.engine._plan import MergePlan, Settings, make_plan
from submerge.engine._quiet import quietly
from submerge.engine._report import MergeReport, Progress
from submerge.engine._states import merge_state_dicts
from submerge.engine._tables import is_matrix
from submerge.engine._tensor import Input, TensorPlan
from submerge.engine._verify import VerifyReport, verify
from submerge.engine._vllm import vllm_command

__all__ = [
    "Input",
    "MergePlan",
    "MergeReport",
    "Progress",
    "Settings",
    "TensorPlan",
    "VerifyReport",
    "compute_seconds",
    "describe",
    "explain",
    "extract_lora",
    "is_matrix",
    "make_plan",
    "merge",
    "merge_adapters",
    "merge_state_dicts",
    "quietly",
    "stores_transposed",
    "verify",
    "vllm_command",
]
