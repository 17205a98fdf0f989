"""Which matrices are fused: several linear maps of one input, stored as one, and which rows are whose.

A model with a split layout stores queries, keys and values as three matrices, q_proj, k_proj and v_proj, and
the gate and the input of its feed-forward network as two. One with a fused layout stores each group as one
matrix, whose product with the input is then cut. How it is cut is nowhere in the file. With h heads of d rows
of which g have keys and values (g = h without grouped attention, 1 with multi-query attention), there are

    in a row   [h·d of q | g·d of k | g·d of v]               Phi-3, DBRX, ChatGLM; with g = h MPT and others,
                                                              encoders of images, torch's MultiheadAttention,
                                                              and GPT-2, in columns
    by group   g times [h/g·d of q | d of k | d of v]         Falcon, InternLM2; with g = h GPT-NeoX, BLOOM
    by shard   4 times [h/4·d of q | h/4·d of v | h/4·d of k] CodeGen
    halves     [gate | up], or another pair                   gate_up_proj of Phi-3 and GLM

The table below has them by the last word of a module's name and by the `model_type` of the part of the
configuration that the module is of. Sizes follow from the matrix and from the numbers of heads there; the
layout of a matrix that does not have these sizes is not known. All are as in transformers' classes, but for
`internlm2`, `chatglm`, `qwen` and `baichuan`, whose code comes with their weights.

Maps that no model stores apart (DeepSeek's kv_b_proj, Mamba's in_proj) are not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from submerge.algebra import FusedLayout

__all__ = ["fused_layout", "is_fused", "may_be_fused"]

Config: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Config, int, int], FusedLayout | None]
"""Gets the part of the configuration, and how many outputs (of all maps) and inputs the matrix has."""

QKV = ("q", "k", "v")

_NAMES = re.compile(r"(?:.+_)?qkvz?(?:_proj|_linear)?|[Ww]_?qkv|query_key_value|c_attn|W_pack|gate_up_proj")
"""Last words of modules' names that say that a matrix is fused, whichever model it is of."""


def fused_layout(name: str, shape: Sequence[int], config: Config | None) -> FusedLayout | None:
    """Return which rows of a matrix belong to which of its maps; None where it is one map, or not known.

    Args:
        name: of the tensor.
        shape: of the tensor.
        config: of the model; parts of it (`text_config`) are looked at, too.

    Examples:
        >>> from submerge.names import fused_layout
        >>> phi = {"model_type": "phi3", "num_attention_heads": 8, "num_key_value_heads": 2}
        >>> fused_layout("model.layers.0.self_attn.qkv_proj.weight", (48, 32), phi)
        FusedLayout(maps=('q', 'k', 'v'), sizes=(32, 8, 8), groups=1, axis=0)
        >>> print(fused_layout("model.layers.0.self_attn.o_proj.weight", (32, 32), phi))
        None
    """
    module = _module(name)
    if len(shape) != 2:
        return None
    if module == "in_proj_weight":  # of torch's MultiheadAttention, in any model
        return _equal(QKV)({}, *shape) if shape[0] == 3 * shape[1] else None
    rules = _LAYOUTS.get(module, {})
    parts = [part for part in _parts(config or {}) if part["model_type"] in rules]
    found = {_of_part(rules, part, shape) for part in parts} - {None}
    return found.pop() if len(found) == 1 else None


def _of_part(rules: Mapping[str, Rule], part: Config, shape: Sequence[int]) -> FusedLayout | None:
    """Return the layout of a module of this part of a configuration, if its numbers fit the shape."""
    is_transposed = part["model_type"] in _TRANSPOSED
    rows, columns = shape
    layout = rules[part["model_type"]](part, *((columns, rows) if is_transposed else (rows, columns)))
    return replace(layout, axis=1) if layout and is_transposed else layout


def is_fused(name: str) -> bool:
    """Return whether a matrix is fused by its name, whichever model it is of.

    Examples:
        >>> from submerge.names import is_fused
        >>> is_fused("h.0.attn.c_attn.weight"), is_fused("h.0.attn.c_proj.weight")
        (True, False)
    """
    module = _module(name)
    return module == "in_proj_weight" or _NAMES.fullmatch(module) is not None


def may_be_fused(name: str) -> bool:
    """Return whether a matrix of this name is fused in some model.

    Examples:
        >>> from submerge.names import may_be_fused
        >>> may_be_fused("layers.0.attn.Wqkv.weight"), may_be_fused("layers.0.mlp.Wi.weight")
        (True, True)
    """
    return is_fused(name) or _module(name) in _LAYOUTS


def _module(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _parts(config: Config) -> Iterator[Config]:
    """Yield the configuration and its parts, as far as each names its model."""
    if isinstance(config.get("model_type"), str):
        yield config
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _parts(part)


# --- the layouts ----------------------------------------------------------------------------------


def _equal(maps: tuple[str, ...], groups: int = 1) -> Rule:
    """Return the layout of maps of equal size."""

    def layout(_: Config, rows: int, inputs: int) -> FusedLayout | None:
        size, rest = divmod(rows, groups * len(maps))
        return None if rest or not size else FusedLayout(maps, (size,) * len(maps), groups)

    return layout


def _in_a_row(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return the layout of all queries, then all keys, then all values."""
    heads, kv = _heads(config), _kv_heads(config)
    d = _head_size(config, rows, inputs, kv)
    return FusedLayout(QKV, (heads * d, kv * d, kv * d)) if d else None


def _by_group(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return the layout of the queries of a group of heads, their keys, and their values, group by group."""
    return _grouped(config, rows, inputs, _kv_heads(config))


def _by_head(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return the layout of each head's queries, keys and values, head by head."""
    return _grouped(config, rows, inputs, _heads(config))


def _multi_query(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return Falcon's and GPTBigCode's: of one group, or by head; newer Falcons have groups."""
    if config.get("new_decoder_architecture"):
        return _by_group(config, rows, inputs)
    return _grouped(config, rows, inputs, 1 if config.get("multi_query", True) else _heads(config))


def _chatglm(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return ChatGLM's, from its second version on."""
    return _in_a_row(config, rows, inputs) if config.get("multi_query_attention") else None


def _chatglm_gated(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return that of ChatGLM's feed-forward network, which has no gate in its first version."""
    return _GATED(config, rows, inputs) if rows == 2 * _number(config, "ffn_hidden_size") else None


def _gpt2(_: Config, columns: int, inputs: int) -> FusedLayout | None:
    """Return GPT-2's: keys and values alone in its cross-attention."""
    maps = {3 * inputs: QKV, 2 * inputs: ("k", "v")}.get(columns)
    return FusedLayout(maps, (inputs,) * len(maps)) if maps else None


def _linear_attention(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return that of Qwen3.5's linear attention: in a row, with heads of their own number and size."""
    k, k_size, v, v_size = _linear_heads(config)
    sizes = k * k_size, k * k_size, v * v_size
    return FusedLayout(QKV, sizes) if sum(sizes) == rows and all(sizes) else None


def _gated_linear_attention(config: Config, rows: int, inputs: int) -> FusedLayout | None:
    """Return that of Qwen3-Next's linear attention: by head of keys, each with a gate z besides."""
    k, k_size, v, v_size = _linear_heads(config)
    if not k or v % k:
        return None
    sizes = k_size, k_size, v // k * v_size, v // k * v_size
    return FusedLayout((*QKV, "z"), sizes, groups=k) if k * sum(sizes) == rows and all(sizes) else None


def _grouped(config: Config, rows: int, inputs: int, kv: int) -> FusedLayout | None:
    d = _head_size(config, rows, inputs, kv)
    return FusedLayout(QKV, (_heads(config) // kv * d, d, d), groups=kv) if d else None


def _head_size(config: Config, rows: int, inputs: int, kv: int) -> int:
    """Return the rows of one head; 0 where the matrix has not as many as heads of that size have."""
    heads = _heads(config)
    if not heads or heads % kv:
        return 0
    d = _number(config, "head_dim", "kv_channels") or inputs // heads
    return d if rows == d * (heads + 2 * kv) else 0


def _heads(config: Config) -> int:
    return _number(config, "num_attention_heads", "n_head", "n_heads", "num_heads")


def _kv_heads(config: Config) -> int:
    """Return how many heads have keys and values of their own: all, where nothing is said."""
    own = config.get("attn_config")  # of DBRX
    keys = "num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num"
    return _number({**config, **own} if isinstance(own, Mapping) else config, *keys) or _heads(config)


def _linear_heads(config: Config) -> tuple[int, ...]:
    words = "num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim"
    return tuple(_number(config, f"linear_{word}") for word in words)


def _number(config: Config, *keys: str) -> int:
    """Return the first of these numbers that a configuration has, or 0: classes have words of their own."""
    return next((n for key in keys if type(n := config.get(key)) is int and n > 0), 0)


# --- the table ------------------------------------------------------------------------------------

_GATED = _equal(("gate", "up"))
_KEYS_AND_VALUES = _equal(("k", "v"))

_VISION = (
    *("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe"),
    *("qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm_ocr", "glm_image", "ernie4_5_vl_moe"),
    *("sam", "sam_vision_model", "sam_hq", "sam2", "vitdet", "got_ocr2", "seggpt", "hiera"),
    *("florence2", "florence_vision", "timesformer", "mgp-str", "blip_vision_model", "blip_2_vision_model"),
    *("instructblip_vision_model", "instructblipvideo_vision_model"),
)
"""Models whose encoders have [q | k | v] of one size as `qkv`."""
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models that store matrices as [inputs, outputs] (transformers' Conv1D), so that the maps are columns."""


def _of(rule: Rule, *types: str) -> dict[str, Rule]:
    return dict.fromkeys(types, rule)


_LAYOUTS: Mapping[str, Mapping[str, Rule]] = {
    "qkv_proj": {
        **_of(_in_a_row, "phi3", "phi4_multimodal"),
        **_of(_equal(("q", "v", "k"), groups=4), "codegen"),
        **_of(_by_head, "minimax"),
    },
    "query_key_value": {
        **_of(_by_head, "gpt_neox", "gpt_neox_japanese", "bloom", "persimmon"),
        **_of(_multi_query, "falcon"),
        **_of(_chatglm, "chatglm"),
    },
    "c_attn": {
        **_of(_gpt2, *_TRANSPOSED),
        **_of(_multi_query, "gpt_bigcode"),
        **_of(_equal(QKV), "qwen"),
    },
    "Wqkv": {**_of(_equal(QKV), "mpt", "modernbert"), **_of(_in_a_row, "dbrx")},
    "wqkv": _of(_by_group, "internlm2"),
    "W_pack": _of(_equal(QKV), "baichuan"),
    "qkv": {**_of(_equal(QKV), *_VISION), **_of(_in_a_row, "exaone4_5_vision")},
    "qkv_linear": _of(_equal(QKV), "layoutlmv2"),
    "in_proj": _of(_by_head, "deberta"),
    "in_proj_qkv": _of(_linear_attention, "qwen3_5_text", "qwen3_5_moe_text"),
    "in_proj_qkvz": _of(_gated_linear_attention, "qwen3_next"),
    "to_kv": _of(_KEYS_AND_VALUES, "granite_speech", "granite_speech_encoder"),
    "kv_proj": _of(_KEYS_AND_VALUES, "jetmoe"),
    "gate_up_proj": _of(
        _GATED,
        *("phi3", "phi4_multimodal", "dia", "zamba2"),
        *("glm", "glm4", "glm4v", "glm4v_text", "glm_ocr", "glm_ocr_text", "glm_image", "glm_image_text"),
    ),
    "dense_h_to_4h": _of(_chatglm_gated, "chatglm"),
    "Wi": _of(_equal(("input", "gate")), "modernbert", "modernbert-decoder"),
    "input_linear": _of(_GATED, "granitemoeshared", "granitemoehybrid"),
}
"""Last word of a module's name -> model type -> layout."""
