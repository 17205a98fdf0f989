"""From a recipe to a plan: what is read, computed and written for each tensor, and in how much memory.

`make_plan` is the way through. Models are opened (`_models`) and take the names of the reference (`_naming`);
parameters of several names are settled (`_tied_names`, `_copies`); each tensor is planned by the first case
that holds for it (`_align`), from what the recipe says of it (`_tensor_rules`) and from where the models'
parts come (`_members`). Then an adapter gets its form (`_adapter_form`), a gate its tasks (`_gate`), the
output its tokenizer (`_tokens`), and memory is counted (`_memory`). All problems are told at once.

Where a recipe names a tokenizer's source, `_plan_vocabulary` puts the models' tokens together,
`_token_origins` says whose row each has, and `_token_rows` gives every model tables with these rows, before
anything else is planned.

Where that source is a donor, `_plan_transplant` finds the tokens that it shares with the models, by what they
stand for (`_token_keys`), and `_donor_rows` how the rows of all others are approximated.

Specialists of a composed model are opened with their adapters (`_specialists`); `_composition` finds what is
their own, their placeholders, and the tokenizer that they share. Where outputs of projectors are mixed
(`_projectors`), models must have changed no encoder (`_projector_changes`), and tasks have
prototypes (`_prototypes`). What a merge will write can be a model of another plan (`_planned`), and may need
no folder for that (`_virtual`).

Layers that are stacked (`_stack`) are planned slice by slice (`_plan_stack`, `_stacked_models`): each slice
is a merge of models whose layers have the output's numbers.

`plan_mixture` is the way of a mixture of experts, in which no tensor is merged: what its tensors are called
is said in `_mixture_forms`, what its models must have in `_mixture_sources`.
"""

from submerge.engine.plan._adapter_form import adapter_file, lora_keys, stores_transposed
from submerge.engine.plan._bank_size import bank_bounds, bank_bytes
from submerge.engine.plan._composition import Composition, SpecialistPlan
from submerge.engine.plan._describe_composition import describe_specialist
from submerge.engine.plan._describe_projectors import describe_projectors
from submerge.engine.plan._describe_stack import describe_stack
from submerge.engine.plan._device import check_device
from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._make_plan import make_plan, plan_models
from submerge.engine.plan._mixture import MixturePlan, describe_mixture
from submerge.engine.plan._mixture_sources import is_feed_forward
from submerge.engine.plan._model_tokens import add_tokens
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._plan_mixture import plan_mixture
from submerge.engine.plan._planned import planned_checkpoint
from submerge.engine.plan._projector_score import (
    MUCH_OVERLAP,
    ProjectorScore,
    ShownTask,
    bank_rows,
    choose_score,
    overlaps_of,
)
from submerge.engine.plan._projectors import ProjectorPlan
from submerge.engine.plan._settings import Settings
from submerge.engine.plan._shared_tokens import SharedToken, SharedTokens, share_tokens
from submerge.engine.plan._stream_parts import is_plain, stream_model, stream_parts
from submerge.engine.plan._tables import is_matrix
from submerge.engine.plan._tensor import (
    HELD,
    Input,
    TensorPlan,
    chunk_length,
    computed_elements,
    range_length,
    read_length,
    torch_dtype,
)
from submerge.engine.plan._token_ids import with_token_ids
from submerge.engine.plan._token_rows import with_token_rows
from submerge.engine.plan._tokens import beyond_rows, describe_beyond
from submerge.engine.plan._virtual import can_be_virtual, reads_values_alone, virtual_model
from submerge.engine.plan._vocabulary import OutputVocabulary

__all__ = [
    "HELD",
    "MUCH_OVERLAP",
    "Composition",
    "Input",
    "Inputs",
    "MergePlan",
    "MixturePlan",
    "OutputVocabulary",
    "ProjectorPlan",
    "ProjectorScore",
    "Settings",
    "SharedToken",
    "SharedTokens",
    "ShownTask",
    "SpecialistPlan",
    "TensorPlan",
    "adapter_file",
    "add_tokens",
    "bank_bounds",
    "bank_bytes",
    "bank_rows",
    "beyond_rows",
    "can_be_virtual",
    "check_device",
    "choose_score",
    "chunk_length",
    "computed_elements",
    "describe_beyond",
    "describe_mixture",
    "describe_projectors",
    "describe_specialist",
    "describe_stack",
    "is_feed_forward",
    "is_matrix",
    "is_plain",
    "lora_keys",
    "make_plan",
    "overlaps_of",
    "plan_mixture",
    "plan_models",
    "planned_checkpoint",
    "range_length",
    "read_length",
    "reads_values_alone",
    "share_tokens",
    "stores_transposed",
    "stream_model",
    "stream_parts",
    "torch_dtype",
    "virtual_model",
    "with_token_ids",
    "with_token_rows",
]
