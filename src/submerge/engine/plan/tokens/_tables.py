"""Which tensors are tables, told by what looks their rows up: names, and for output heads the vocabulary.

Nothing here goes by sizes alone: in a byte-level model the vocabulary may be as long as any other side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from submerge.names import layer_of
from submerge.store import TensorEntry

__all__ = ["is_head", "is_matrix", "is_table", "token_rows", "token_tables"]

_TOKENS = re.compile(
    r"(?:text_)?(?:embed_tokens|tok(?:ens?)?_embeddings?|tok(?:ens?)?_embed|tok(?:ens?)?_emb)|word_embeddings?"
    r"|wte|shared|embed_in|embed_text_tokens|input_embeddings?|input_embeds_layers?"
)
"""Modules with a row for each token id: `embed_tokens` (Llama), `word_embeddings` (BERT), `wte` (GPT-2)."""
_ROOT_TOKENS = re.compile(
    r"(?:(?:.+\.)?(?:transformer|backbone|model|language_model|text_model|rwkv)\.)?(?:embeddings?|emb)"
    r"|transformer\.w"
)
"""The same under a name that says little, by the module that holds it: `backbone.embeddings` (Mamba)."""
_EMBEDDING = re.compile(
    r"(?!(?:.+_)?(?:patch|pixel|time|timestep|decoder|predictor|linear|unitseq2|relative_pos)_emb|class_embed$)"
    r"(?:.+_)?(?:embeddings?|embeds?|embs?|embeds_layers?|(?:row|column|queries)_embedder)"
    r"|HashBucketCodepointEmbedder|embed_(?:.+_)?(?:tokens|positions|per_layer|global|timestep)"
    r"|wpe|relative_attention_bias|pe_k|bias_values|(?!vision_).+_tokens?|(?:.+_)?codebook|.+_table"
    r"|query_feat|queries_features"
)
"""Modules that look rows up by position, type, distance or number; a patch embedding is a linear map."""
_PARAMETER = re.compile(
    r".*(?:bias|embed|token|table|pos_emb|latent|position_enc|pointer|scale).*|rel_pos_[hw]|A_log"
)
"""Parameters without a module of their own that are no linear maps: looked up, added or multiplied."""
_HEAD = re.compile(
    r"(?:.+_)?lm_heads?|embed_out|vocab_projector|lm_loss|(?:.*predictions|lm_head)\.decoder"
    r"|lm_head\.out_proj|pred_layer\.proj"
)
"""Output maps over the vocabulary, by the names that only they have."""
_GENERAL_HEAD = re.compile(
    r"(?:output|out|head|decoder|proj_out|output_projection|output_layer|logits|fc_out)"
)
"""Names that output maps share with others: a head has a row for each token, outside of the layers."""
_BY_LAYER = "embed_tokens_per_layer"
"""The module with a second row for each token (Gemma 3n), whose parts are added in the layers."""
_HEAD_BIAS = re.compile(r"(?:.+_)?predictions|mlm_score|embedding_decoder")
"""Modules that hold an output head's bias, and not its matrix."""


def is_matrix(name: str, shape: Sequence[int], config: Mapping[str, Any] | None) -> bool:
    """Return whether a tensor is the matrix of a linear map, whose singular vectors mean something.

    A table with a row for each token, position or type is none, nor is an output head over the vocabulary,
    nor a bias or another parameter that is no map. `config` is the model's, for heads of a general name.
    """
    if len(shape) != 2 or min(shape) < 2:
        return False
    return not is_table(name, shape, config) and not _is_parameter(name)


def is_table(name: str, shape: Sequence[int], config: Mapping[str, Any] | None) -> bool:
    """Return whether a tensor has a row for each token, position or type: looked up, or made into a logit."""
    if len(shape) != 2:
        return False
    _, module = _module(name)
    if _has_tokens(name) or _EMBEDDING.fullmatch(module):
        return True
    return _is_head(name, shape[0] in _vocabularies(config or {}))


def token_rows(tensors: Mapping[str, TensorEntry]) -> int | None:
    """Return how many token ids a model has rows for; None where none of its tensors is known to hold them.

    A model may look tokens up in several tables (an audio decoder's beside a text encoder's): the longest
    counts, with the rows that Idefics stores in a table of their own.
    """
    rows: list[int] = []
    for name, entry in tensors.items():
        if len(entry.shape) == 2 and _has_tokens(name):
            more = tensors.get(f"{name.removesuffix('.weight')}.additional_embedding.weight")
            rows.append(entry.shape[0] + (more.shape[0] if more else 0))
    return max(rows, default=None)


def token_tables(tensors: Mapping[str, TensorEntry], rows: int) -> list[str]:
    """Return the tensors with a row for each of so many tokens: embeddings, output heads, their biases."""
    long = [name for name, entry in tensors.items() if entry.shape[:1] == (rows,)]
    matrices = [name for name in long if len(tensors[name].shape) == 2]
    heads = [name for name in matrices if _is_head(name, True)]
    embeddings = [name for name in matrices if _has_tokens(name)]
    by_layer = [name for name in matrices if _module(name)[1] == _BY_LAYER]
    return [*embeddings, *by_layer, *heads, *(name for name in long if _is_head_bias(name))]


def is_head(name: str) -> bool:
    """Return whether a table with a row for each token is an output head, and no embedding."""
    return not _has_tokens(name)


def _has_tokens(name: str) -> bool:
    """Return whether a matrix of this name has a row for each token id."""
    path, module = _module(name)
    return bool(_TOKENS.fullmatch(module) or _ROOT_TOKENS.fullmatch(path))


def _is_head_bias(name: str) -> bool:
    """Return whether a name is that of an output head's bias, whose matrix may be tied to the embeddings."""
    path, _, last = name.rpartition(".")
    is_beside_head = _is_head(path, True) or bool(_HEAD_BIAS.fullmatch(_module(path)[1]))
    return last == "final_logits_bias" or (last == "bias" and is_beside_head)


def _is_head(name: str, fits: bool) -> bool:
    """Return whether a matrix of this name is an output head; `fits` says if its rows can be those of one."""
    path, module = _module(name)
    if _HEAD.fullmatch(module) or _HEAD.fullmatch(".".join(path.split(".")[-2:])):
        return True
    return fits and _GENERAL_HEAD.fullmatch(module) is not None and layer_of(name) is None


def _module(name: str) -> tuple[str, str]:
    """Return the path of the module that a tensor belongs to, and its last name, without a number at its end.

    Members of a list are called as the list is, if that is a plural.
    """
    path = name.removesuffix(".weight")
    parts = path.split(".")
    if parts[-1].isdecimal() and len(parts) > 1 and parts[-2].endswith("s"):
        parts.pop()
    return path, re.sub(r"_\d+$", "", parts[-1])


def _is_parameter(name: str) -> bool:
    return not name.endswith("weight") and _PARAMETER.fullmatch(name.rpartition(".")[2]) is not None


def _vocabularies(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield every `vocab_size` of a configuration and of its parts."""
    if type(size := config.get("vocab_size")) is int:
        yield size
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _vocabularies(part)
