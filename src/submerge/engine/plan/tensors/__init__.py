"""What happens to each tensor of the output: what meets in it, by which rule, and in how much memory."""

from submerge.engine.plan.tensors._adapter_form import (
    adapter_file,
    lora_keys,
    stores_transposed,
    tied_to_heads,
)
from submerge.engine.plan.tensors._adapter_warnings import adapter_warnings, expert_warnings, table_warnings
from submerge.engine.plan.tensors._align import TensorPlanner, plan_tensors
from submerge.engine.plan.tensors._coefficients import (
    calibration_bytes,
    coefficient_problems,
    coefficient_warnings,
)
from submerge.engine.plan.tensors._gate import GatePlan, plan_gate
from submerge.engine.plan.tensors._memory import Budget, budget, reading_bytes
from submerge.engine.plan.tensors._moments import add_moments, moment_bytes, moment_warnings
from submerge.engine.plan.tensors._naming import align_models, idle_models, naming_warnings
from submerge.engine.plan.tensors._other_base import other_base_warnings
from submerge.engine.plan.tensors._tensor import (
    HELD,
    Input,
    TensorPlan,
    chunk_length,
    computed_elements,
    range_length,
    read_length,
)
from submerge.engine.plan.tensors._tensor_rules import TensorRules
from submerge.engine.plan.tensors._weight_files import weight_files

__all__ = [
    "HELD",
    "Budget",
    "GatePlan",
    "Input",
    "TensorPlan",
    "TensorPlanner",
    "TensorRules",
    "adapter_file",
    "adapter_warnings",
    "add_moments",
    "align_models",
    "budget",
    "calibration_bytes",
    "chunk_length",
    "coefficient_problems",
    "coefficient_warnings",
    "computed_elements",
    "expert_warnings",
    "idle_models",
    "lora_keys",
    "moment_bytes",
    "moment_warnings",
    "naming_warnings",
    "other_base_warnings",
    "plan_gate",
    "plan_tensors",
    "range_length",
    "read_length",
    "reading_bytes",
    "stores_transposed",
    "table_warnings",
    "tied_to_heads",
    "weight_files",
]
