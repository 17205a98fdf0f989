"""Rules by which `config.json` says which layers differ from the others, for layers that have moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["with_patterns"]

_Config: TypeAlias = Mapping[str, Any]
_Kind: TypeAlias = Callable[[int], Any]
_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers")
"""What mixtures of experts call the number of dense layers before the sparse ones."""
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
"""Of every how many layers one attends to all positions, where a configuration does not say it."""


def with_patterns(
    config: _Config, original: _Config, sources: Sequence[tuple[_Config, int]]
) -> dict[str, Any]:
    """Return a configuration whose rules say of each layer what it was where it comes from.

    `original` is the configuration before its layers moved, and `sources` are, for each layer, the
    configuration of its model and its number there. Keys change only where the rules would say something
    else. Raises `ValueError` where no value of them says it.

    Examples:
        >>> config = {"decoder_sparse_step": 2, "mlp_only_layers": []}
        >>> with_patterns(config, config, [(config, 1), (config, 0), (config, 1)])
        {'decoder_sparse_step': 1, 'mlp_only_layers': [1]}
    """
    edited = dict(config)
    for read, write in _PATTERNS:
        rule = read(original)
        if rule is None:
            continue
        kinds = [(read(own) or rule)(number) for own, number in sources]
        if not _says(read, edited, kinds):
            edited |= write(original, kinds)
        if not _says(read, edited, kinds):
            keys = " and ".join(key for key in _FIRST_DENSE if key in config)
            raise ValueError(
                f"{keys} says that dense layers come first, and here sparse ones come before them"
            )
    return edited


def _says(read: Callable[[_Config], _Kind | None], config: _Config, kinds: Sequence[Any]) -> bool:
    rule = read(config)
    return rule is not None and [rule(number) for number in range(len(kinds))] == list(kinds)


def _sparse_step(config: _Config) -> _Kind | None:
    """Return whether a layer has experts, as for Qwen's mixtures: every n-th one, but for those listed."""
    step, dense = config.get("decoder_sparse_step"), config.get("mlp_only_layers") or ()
    if type(step) is not int or step < 1 or "encoder_sparse_step" in config:  # which counts in another way
        return None
    return lambda number: number not in dense and (number + 1) % step == 0


def _write_sparse_step(config: _Config, sparse: Sequence[Any]) -> dict[str, Any]:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number, has_experts in enumerate(sparse) if not has_experts],
    }


def _first_dense(config: _Config) -> _Kind | None:
    """Return whether a layer has experts, as for DeepSeek's mixtures: all but the first n."""
    counts = [config[key] for key in _FIRST_DENSE if type(config.get(key)) is int]
    if not counts or isinstance(config.get("mlp_layer_types"), list):  # which holds for each layer
        return None
    return lambda number: number >= counts[0]


def _write_first_dense(config: _Config, sparse: Sequence[Any]) -> dict[str, Any]:
    count = next((number for number, has_experts in enumerate(sparse) if has_experts), len(sparse))
    return {key: count for key in _FIRST_DENSE if key in config}


def _attention(config: _Config) -> _Kind | None:
    """Return how far a layer's attention reaches, where a rule says it and no list."""
    types = config.get("layer_types")
    if isinstance(types, list):
        return lambda number: types[min(number, len(types) - 1)]
    family = str(config.get("model_type"))
    pattern = config.get("sliding_window_pattern", _FULL_EVERY.get(family))
    if type(pattern) is int and pattern > 0:
        return lambda number: "sliding_attention" if (number + 1) % pattern else "full_attention"
    window = config.get("max_window_layers")
    used = config.get("use_sliding_window") and config.get("sliding_window") and family != "qwen2_moe"
    if type(window) is int and used:
        return lambda number: "sliding_attention" if number >= window else "full_attention"
    return None


def _write_attention(config: _Config, kinds: Sequence[Any]) -> dict[str, Any]:
    return {"layer_types": list(kinds)}


_PATTERNS: tuple[
    tuple[Callable[[_Config], _Kind | None], Callable[[_Config, Sequence[Any]], dict[str, Any]]], ...
] = (
    (_sparse_step, _write_sparse_step),
    (_first_dense, _write_first_dense),
    (_attention, _write_attention),
)
"""For each rule what it says of a layer by its number, and the keys that say this of all layers."""
