"""The tokens of the output, and which models' rows its tables have for them."""

from submerge.engine.plan.tokens._donor_rows import DonorRows
from submerge.engine.plan.tokens._model_tokens import add_tokens
from submerge.engine.plan.tokens._shared_tokens import SharedTokens, share_tokens
from submerge.engine.plan.tokens._tables import is_matrix, is_table, token_tables
from submerge.engine.plan.tokens._token_ids import with_token_ids
from submerge.engine.plan.tokens._token_rows import with_token_rows
from submerge.engine.plan.tokens._tokenizer_code import code_warnings
from submerge.engine.plan.tokens._tokens import (
    TokenPlan,
    beyond_rows,
    describe_beyond,
    plan_tokens,
    shared_token_plan,
    with_chat_template,
)
from submerge.engine.plan.tokens._unlike_cuts import cut_warnings
from submerge.engine.plan.tokens._vocabulary import OutputVocabulary, with_known_heads

__all__ = [
    "DonorRows",
    "OutputVocabulary",
    "SharedTokens",
    "TokenPlan",
    "add_tokens",
    "beyond_rows",
    "code_warnings",
    "cut_warnings",
    "describe_beyond",
    "is_matrix",
    "is_table",
    "plan_tokens",
    "share_tokens",
    "shared_token_plan",
    "token_tables",
    "with_chat_template",
    "with_known_heads",
    "with_token_ids",
    "with_token_rows",
]
