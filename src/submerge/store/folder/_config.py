"""What `config.json` says that a merge must know: quantised weights and tied embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from submerge.errors import Problem, few
from submerge.store.format import DTYPES, TensorEntry

__all__ = [
    "can_untie",
    "edited_text_parts",
    "is_t5",
    "layer_count",
    "quantised_config",
    "text_parts",
    "tied_embeddings",
    "unmergeable_tensors",
    "untied",
    "vocabulary_size",
    "with_vocabulary_size",
]

_DEQUANTISE = (
    "give the original checkpoint, or dequantise this one first (Transformers: model.dequantize(); MLX: "
    "mlx_lm.convert --dequantize)"
)
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_T5 = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"})
_VOCABULARY_KEYS = ("vocab_size", "vocab_size_per_layer_input")
_QUANTISED_ENDS = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".absmax",
    ".nested_absmax",
    ".quant_map",
    ".nested_quant_map",
    ".quant_state",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_format",
    ".SCB",
    ".W_q",
    ".codebooks",
    ".comfy_quant",
    ".scale_weight",
    ".weight._data",
    ".weight_scales",
)
_QUANTISED_INTEGERS = ("_blocks", "_scales", ".weight")
"""Ends of names that small integers have as quantised weights alone, such as those of MXFP4 and of MLX."""
_PACKED_TYPES = ("I8", "U8", "I16", "U16", "I32", "U32")
"""Integers that weights are packed into, whatever their names (EXL3, VPTQ); positions have 64 bits."""


def text_parts(config: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return a configuration, and after it those of its parts that are language models."""
    config = config or {}
    return [part for part in (config, *map(config.get, _TEXT_PARTS)) if isinstance(part, Mapping)]


def quantised_config(
    config: Mapping[str, Any], path: Path | str, tensors: Collection[TensorEntry] = ()
) -> list[Problem]:
    """Return a problem if the configuration says that the weights are quantised.

    `tensors` are those of the files, where they are known: if all are plain floats, the configuration may
    have been left as it was when the weights were dequantised.
    """
    for part in text_parts(config):
        settings, key = part.get("quantization_config"), "quantization_config"
        if not settings and isinstance(of_mlx := part.get("quantization"), Mapping) and "bits" in of_mlx:
            settings, key = of_mlx, "quantization"
        if settings:
            method = settings.get("quant_method") if isinstance(settings, Mapping) else None
            kind = f" ({method})" if method else ""
            what = f"the weights are quantised{kind}, as {key} says; they cannot be merged"
            if tensors and not unmergeable_tensors(tensors, "") and all(map(_has_floats, tensors)):
                what = f"{key} says that weights are quantised{kind}, and the files have floats"
                hint = f"if they were dequantised, remove {key} there; else " + _DEQUANTISE
                return [Problem(what, str(path), hint)]
            return [Problem(what, str(path), _DEQUANTISE)]
    return []


def _has_floats(entry: TensorEntry) -> bool:
    """Return whether a tensor is of floats, or of what no weights are packed into."""
    return entry.is_float or entry.dtype in ("BOOL", "I64") or len(entry.shape) < 2


def unmergeable_tensors(tensors: Iterable[TensorEntry], where: Path | str) -> list[Problem]:
    """Return a problem for each kind of tensor that cannot be merged: quantised by name or type, complex."""
    by_name: list[str] = []
    by_type: dict[str, list[str]] = {}
    tensors = list(tensors)
    packed = [entry for entry in tensors if entry.dtype in _PACKED_TYPES and len(entry.shape) > 1]
    if 2 * sum(entry.nbytes for entry in packed) > sum(entry.nbytes for entry in tensors):
        by_name = [entry.name for entry in packed]
    for entry in tensors if not by_name else ():
        is_packed = entry.dtype in _PACKED_TYPES and len(entry.shape) > 1
        ends = (*_QUANTISED_ENDS, *(_QUANTISED_INTEGERS if is_packed else ()))
        if entry.name.endswith(ends) or ".quant_state." in entry.name:
            by_name.append(entry.name)
    for entry in tensors:
        if not DTYPES[entry.dtype].supported:
            by_type.setdefault(entry.dtype, []).append(entry.name)
    problems = []
    if by_name:
        what = f"holds the parts of quantised weights ({few(by_name)}); they cannot be merged"
        problems.append(Problem(what, str(where), _DEQUANTISE))
    for code, names in by_type.items():
        if DTYPES[code].kind == "complex":
            what, hint = "complex", "convert them to real tensors"
        else:
            what, hint = "quantised", _DEQUANTISE
        problems.append(Problem(f"holds {what} tensors of type {code} ({few(names)})", str(where), hint))
    return problems


def vocabulary_size(config: Mapping[str, Any] | None) -> int | None:
    """Return how many rows the embeddings have: the outermost `vocab_size`, or that of a text part."""
    return next(
        (int(part["vocab_size"]) for part in text_parts(config) if type(part.get("vocab_size")) is int),
        None,
    )


def edited_text_parts(
    config: Mapping[str, Any], edit: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a configuration after an edit of its outermost keys and of those of its language models."""
    parts = {key: edit(config[key]) for key in _TEXT_PARTS if isinstance(config.get(key), Mapping)}
    return {**edit(config), **parts}


def with_vocabulary_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a configuration whose embeddings have so many rows: in its text parts, or outermost."""
    is_text = len(text_parts(config)) == 1

    def sized(part: Mapping[str, Any]) -> Mapping[str, Any]:
        outer = part is config and not is_text
        if "vocab_size" not in part:
            return part if outer else {**part, "vocab_size": rows}
        # Gemma 3n says the rows of its second table besides, which need not be as many
        keys = [key for key in _VOCABULARY_KEYS if part.get(key) == part["vocab_size"]]
        return {**part, **dict.fromkeys(keys, rows)}

    return edited_text_parts(config, sized)


def layer_count(config: Mapping[str, Any] | None) -> int | None:
    """Return how many layers a configuration says the model, or its text part, has; None if it does not."""
    for part in text_parts(config):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if type(part.get(key)) is int:
                return int(part[key])
    return None


def tied_embeddings(config: Mapping[str, Any] | None) -> bool | None:
    """Return whether the configuration ties the output head to the input embeddings; None if it does not say.

    The outermost explicit `tie_word_embeddings` counts, then that of `text_config` and its kin.
    """
    for part in text_parts(config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with `tie_word_embeddings: false` in every place that says or implies true."""
    return _untied_part(config, True)


def _untied_part(part: Mapping[str, Any], is_text: bool) -> dict[str, Any]:
    inner = {
        key: _untied_part(value, key in _TEXT_PARTS) if isinstance(value, Mapping) else value
        for key, value in part.items()
    }
    return {**inner, "tie_word_embeddings": False} if is_text or inner.get("tie_word_embeddings") else inner


def is_t5(config: Mapping[str, Any]) -> bool:
    """Return whether the model is T5 or of its kin: encoder and decoder have one embedding in any case."""
    return config.get("model_type") in _T5


def can_untie(config: Mapping[str, Any]) -> bool:
    """Return whether `tie_word_embeddings: false` says nothing else: in T5 it ends a scaling, too."""
    return not is_t5(config) or config.get("scale_decoder_outputs") is False
