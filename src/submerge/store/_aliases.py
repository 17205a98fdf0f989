"""Which names of a model's tensors stand for one parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from submerge.names import layer_of, loaded_names
from submerge.store.folder import tied_embeddings, vocabulary_size

__all__ = ["AliasGroup", "Aliases", "find_aliases"]

Shapes = Mapping[str, tuple[int, ...]]

_TABLE = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|tok_embeddings|tokens_embed|embed_in|shared|embeddings?"
    r"|token_embeddings?)\.weight$"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|output_projection|proj_out|lm_loss|vocab_projector|codec_head"
    r"|generator_lm_head|pred_layer\.proj)\.weight$"
)
_MAYBE_HEAD = re.compile(r"(^|\.)(output|head|decoder)\.weight$")  # if it has a row for each token
# the embedding of an encoder and a decoder: one module in T5, three that are tied in BART
_TRUNK = re.compile(r"^(.*?)(shared|encoder\.embed_tokens|decoder\.embed_tokens)\.weight$")
_TRUNK_ORDER = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
_DECODER_BIAS = re.compile(r"^(.*(?:predictions|lm_head))\.decoder\.bias$")
_HAS_HEAD = re.compile(r"CausalLM|LMHead|MaskedLM|ConditionalGeneration|PreTraining|Seq2SeqLM|WithLM")


@dataclass(frozen=True)
class AliasGroup:
    """Names of one parameter; all others are tied to the first.

    `always` are those that are one parameter whatever the configuration says of tied embeddings.
    """

    names: tuple[str, ...]
    always: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Aliases:
    """The groups of a model, whether its configuration ties them, and whether it has a place for all names.

    `ties` is None where the configuration does not say, and its class is not known or was not asked.
    """

    groups: tuple[AliasGroup, ...] = ()
    ties: bool | None = None
    complete: bool = False


def find_aliases(config: Mapping[str, Any] | None, shapes: Shapes, *, ask: bool) -> Aliases:
    """Return which of these tensors are one parameter in a model of this configuration.

    With `ask` the model's class in transformers tells, if it is installed and knows the model; then
    names count, too, that are not among `shapes`. Else names and shapes tell: an output head and an
    embedding of the vocabulary, the embeddings of encoder and decoder, the two names of BERT's output bias.
    Whether the copies have equal values in a file is another matter.
    """
    configured = tied_embeddings(config)
    if ask and config is not None:
        tying = _class_tying(json.dumps(config, sort_keys=True, default=str), tuple(shapes))
        if tying is not None:
            groups = tuple(_with_trunk(names) for names in tying.groups)
            return Aliases(groups, tying.ties if configured is None else configured, complete=True)
    kinds = (config or {}).get("architectures") or [""]
    has_head = bool(_HAS_HEAD.search(str(kinds[0])))
    return Aliases(tuple(_by_name(shapes, vocabulary_size(config))), configured, complete=has_head)


def _by_name(shapes: Shapes, rows: int | None) -> list[AliasGroup]:
    plain = [name for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) is None]
    tables = [name for name in plain if _TABLE.search(name)]
    heads = [
        name
        for name in plain
        if _HEAD.search(name) or (_MAYBE_HEAD.search(name) and rows in (None, shapes[name][0]))
    ]
    groups = _trunks(tables, shapes)
    grouped = {name for group in groups for name in group}
    groups += [[name] for name in tables if name not in grouped]
    for head in heads:
        fitting = [group for group in groups if shapes[group[0]] == shapes[head]]
        if (group := _nearest(head, fitting)) is not None:
            group.append(head)
    for name in shapes:
        if (stem := _DECODER_BIAS.match(name)) and shapes.get(f"{stem[1]}.bias") == shapes[name]:
            groups.append([f"{stem[1]}.bias", name])
    return [_with_trunk(group) for group in groups if len(group) > 1]


def _trunks(tables: Iterable[str], shapes: Shapes) -> list[list[str]]:
    """Return the embeddings that an encoder and a decoder share, the shared one first."""
    trunks: dict[tuple[str, tuple[int, ...]], dict[str, str]] = {}
    for name in tables:
        if match := _TRUNK.match(name):
            trunks.setdefault((match[1], shapes[name]), {})[match[2]] = name
    return [
        [trunk[part] for part in _TRUNK_ORDER if part in trunk] for trunk in trunks.values() if len(trunk) > 1
    ]


def _nearest(head: str, groups: Sequence[list[str]]) -> list[str] | None:
    """Return the only group, or the one whose names begin like the head's for longest."""
    if len(groups) < 2:
        return groups[0] if groups else None
    lengths = [_common_words(head, group[0]) for group in groups]
    return groups[lengths.index(max(lengths))] if lengths.count(max(lengths)) == 1 else None


def _common_words(one: str, other: str) -> int:
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _with_trunk(names: Sequence[str]) -> AliasGroup:
    return AliasGroup(tuple(names), frozenset(name for name in names if _TRUNK.match(name)))


@dataclass(frozen=True)
class _ClassTying:
    """The groups that a class in transformers ties if it ties, and whether it does by its default."""

    groups: tuple[tuple[str, ...], ...]
    ties: bool


@lru_cache(maxsize=8)
def _class_tying(config: str, names: tuple[str, ...]) -> _ClassTying | None:
    """Return what the class that a configuration names ties; None if it is not known.

    The configuration is text, so that the answer can be remembered: to build the model takes a while.
    """
    raw = json.loads(config)
    if not (architectures := raw.get("architectures")):
        return None  # transformers, whose import takes a while, would know no class either
    try:
        import torch
        import transformers

        kind = getattr(transformers, str(architectures[0]))
        own = kind.config_class.from_dict(raw)
        ties = bool(getattr(own, "tie_word_embeddings", False))
        # a model that does not tie has an empty list of tied weights, so it is built as one that does
        for holder in (own, *(getattr(own, part, None) for part in getattr(own, "sub_configs", {}))):
            if hasattr(holder, "tie_word_embeddings"):
                holder.tie_word_embeddings = True
        with torch.device("meta"):
            model = kind(own)
        stored = {new: name for name, new in loaded_names(model, names).items()}
        targets = dict(model.all_tied_weights_keys)
    except Exception:  # an older or newer transformers, a model of custom code: then names tell
        return None
    groups: dict[str, list[str]] = {}
    for target, source in targets.items():
        while source in targets:
            source = targets[source]
        groups.setdefault(source, [source]).append(target)
    return _ClassTying(
        tuple(tuple(stored.get(name, name) for name in group) for group in groups.values()), ties
    )
