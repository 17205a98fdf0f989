"""Plan, then run: from a recipe to a checkpoint."""

from submerge.engine._documents import merge_documents, plan_documents
from submerge.engine._extract import extract_lora
from submerge.engine._inspect import InspectionProgress, inspect_updates
from submerge.engine._inspection import Inspection, MatrixOverlap, PairOverlap
from submerge.engine._merge import merge
from submerge.engine._moe import moe
from submerge.engine._peft import merge_adapters
from submerge.engine._states import merge_state_dicts
from submerge.engine._transplant import TransplantReport, plan_transplant, transplant
from submerge.engine.output import (
    MergeReport,
    Progress,
    VerifyReport,
    compute_seconds,
    describe,
    explain,
    verify,
    vllm_command,
)
from submerge.engine.plan import (
    Input,
    MergePlan,
    Settings,
    TensorPlan,
    is_matrix,
    make_plan,
    plan_mixture,
    stores_transposed,
)

__all__ = [
    "Input",
    "Inspection",
    "InspectionProgress",
    "MatrixOverlap",
    "MergePlan",
    "MergeReport",
    "PairOverlap",
    "Progress",
    "Settings",
    "TensorPlan",
    "TransplantReport",
    "VerifyReport",
    "compute_seconds",
    "describe",
    "explain",
    "extract_lora",
    "inspect_updates",
    "is_matrix",
    "make_plan",
    "merge",
    "merge_adapters",
    "merge_documents",
    "merge_state_dicts",
    "moe",
    "plan_documents",
    "plan_mixture",
    "plan_transplant",
    "stores_transposed",
    "transplant",
    "verify",
    "vllm_command",
]
