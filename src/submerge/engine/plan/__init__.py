"""From a recipe to a plan: what is read, computed and written for each tensor, and in how much memory.

`make_plan` is the way through. Models are opened, and parameters of several names are settled (`inputs`);
each tensor is planned by the first case that holds for it (`tensors/_align`), from what the recipe says of it
(`tensors/_tensor_rules`) and from where the models' parts come (`tensors/_members`). Then an adapter gets its
form, a gate its tasks, the output its tokenizer (`tokens/_tokens`), and memory is counted
(`tensors/_memory`). All problems are told at once.

Where a recipe names a tokenizer's source, `tokens/_plan_vocabulary` puts the models' tokens together,
`_token_origins` says whose row each has, and `_token_rows` gives every model tables with these rows, before
anything else is planned. Where that source is a donor, `tokens/_plan_transplant` finds the tokens that it
shares with the models, by what they stand for (`_token_keys`), and `_donor_rows` how the rows of all others
are approximated.

Specialists of a composed model are opened with their adapters (`inputs/_specialists`); `composition` finds
what is their own, their placeholders, and the tokenizer that they share. Where outputs of projectors are
mixed (`projectors`), models must have changed no encoder, and tasks have prototypes. What a merge will write
can be a model of another plan (`_planned`), and may need no folder for that (`_virtual`).

Layers that are stacked (`stacks`) are planned slice by slice: each slice is a merge of models whose layers
have the output's numbers (`_stacked_models`).

`plan_mixture` is the way of a mixture of experts, in which no tensor is merged (`mixtures`).
"""

from submerge.engine.plan._bank_size import bank_bounds, bank_bytes
from submerge.engine.plan._make_plan import make_plan, plan_models
from submerge.engine.plan._mixture import MixturePlan, describe_mixture, explain_mixed
from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._plan_mixture import plan_mixture
from submerge.engine.plan._planned import planned_checkpoint
from submerge.engine.plan._stream_parts import is_plain, stream_model, stream_parts
from submerge.engine.plan._virtual import can_be_virtual, reads_values_alone, virtual_model
from submerge.engine.plan._warnings import of_unknown_layout
from submerge.engine.plan.composition import Composition, SpecialistPlan, describe_specialist
from submerge.engine.plan.inputs import Inputs, Settings, common_licence, stored_digest
from submerge.engine.plan.mixtures import is_feed_forward
from submerge.engine.plan.projectors import (
    MUCH_OVERLAP,
    ProjectorPlan,
    TaskStatistics,
    bank_rows,
    choose_score,
    describe_projectors,
    overlaps_of,
)
from submerge.engine.plan.stacks import describe_stack
from submerge.engine.plan.tensors import (
    HELD,
    Input,
    TensorPlan,
    adapter_file,
    adapter_warnings,
    chunk_length,
    computed_elements,
    lora_keys,
    range_length,
    read_length,
    stores_transposed,
)
from submerge.engine.plan.tokens import (
    OutputVocabulary,
    SharedTokens,
    add_tokens,
    beyond_rows,
    describe_beyond,
    is_matrix,
    share_tokens,
    with_token_ids,
    with_token_rows,
)

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
    "Settings",
    "SharedTokens",
    "SpecialistPlan",
    "TaskStatistics",
    "TensorPlan",
    "adapter_file",
    "adapter_warnings",
    "add_tokens",
    "bank_bounds",
    "bank_bytes",
    "bank_rows",
    "beyond_rows",
    "can_be_virtual",
    "choose_score",
    "chunk_length",
    "common_licence",
    "computed_elements",
    "describe_beyond",
    "describe_mixture",
    "describe_projectors",
    "describe_specialist",
    "describe_stack",
    "explain_mixed",
    "is_feed_forward",
    "is_matrix",
    "is_plain",
    "lora_keys",
    "make_plan",
    "of_unknown_layout",
    "overlaps_of",
    "plan_mixture",
    "plan_models",
    "planned_checkpoint",
    "range_length",
    "read_length",
    "reads_values_alone",
    "share_tokens",
    "stored_digest",
    "stores_transposed",
    "stream_model",
    "stream_parts",
    "virtual_model",
    "with_token_ids",
    "with_token_rows",
]
