"""What `config.json` says of a model's layers: how many there are, and lists with a value for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from submerge.store.folder._config import text_parts
from submerge.store.folder._layer_pattern import with_patterns

__all__ = ["ConfiguredLayer", "with_layers"]

ConfiguredLayer: TypeAlias = "tuple[Mapping[str, Any] | None, int]"
"""The configuration of the model that a layer comes from, and the layer's number there."""

_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "depth",
    "encoder_layers",
    "num_encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
"""What configurations call the number of layers."""
_NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "cross_attention_layers",
    "hybrid_layer_ids",
    "full_attn_idxs",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
)
"""Lists of the numbers of those layers that differ from the others."""
_FURTHER = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Numbers of layers that predict further tokens, which no slice has."""
_NO_VALUES = ("_id", "_ids", "_indexes", "_indices", "_section", "_features", "_names", "architectures")
"""Ends of keys whose lists have other things than a value for each layer."""
_TOWERS = {
    "vision_config": ("vision", "visual", "image"),
    "audio_config": ("audio", "speech"),
}
"""The parts of a configuration for an encoder, by words in the names of its tensors."""


def with_layers(
    config: Mapping[str, Any], stack: str, count: int, layers: Sequence[ConfiguredLayer]
) -> dict[str, Any] | None:
    """Return a configuration whose `stack` has these layers in the place of its `count`.

    The number changes, and with it each list that has a value for each layer: the value of an output's layer
    is that of the layer it comes from. So change the rules by which layers differ, such as
    `first_k_dense_replace`. None comes back where the configuration does not say the number; `ValueError` is
    raised where its rules cannot say which layers are which.

    Examples:
        >>> from submerge.store import with_layers
        >>> config = {"num_hidden_layers": 2, "layer_types": ["sliding", "full"]}
        >>> with_layers(config, "model.layers", 2, [(config, 0), (config, 1), (config, 1)])
        {'num_hidden_layers': 3, 'layer_types': ['sliding', 'full', 'full']}
    """
    edited: dict[str, Any] = dict(config)
    changed = False
    for place in _places(config, stack):
        part = config[place] if place else edited
        if not (counts := _count_keys(part, stack, count)):
            continue
        sources = [(_at(of_source, place), number) for of_source, number in layers]
        new = {**part, **dict.fromkeys(counts, len(layers)), **dict(_lists(part, count, sources))}
        new |= {key: 0 for key in _FURTHER if key in part}
        new = with_patterns(new, part, [(own or part, number) for own, number in sources])
        new |= _stages(part, count, len(layers))
        edited = {**edited, place: new} if place else new
        changed = True
    return edited if changed else None


def _places(config: Mapping[str, Any], stack: str) -> list[str]:
    """Return the keys of the parts that describe a stack; an empty one means the outermost keys."""
    words = stack.replace("_", ".").split(".")
    for place, of_tower in _TOWERS.items():
        if isinstance(config.get(place), Mapping) and set(of_tower) & set(words):
            return [place]
    texts = text_parts(config)[1:]
    return ["", *(key for key, part in config.items() if any(part is text for text in texts))]


def _count_keys(part: Mapping[str, Any], stack: str, count: int) -> list[str]:
    """Return the keys that give the number of a stack's layers, of an encoder or a decoder if it is one."""
    keys = [key for key in _COUNTS if type(part.get(key)) is int and part[key] == count]
    decoder = "decoder" in stack.split(".")
    own = [key for key in keys if ("decoder" in key) == decoder]
    return own or [key for key in keys if "encoder" not in key]


def _lists(
    part: Mapping[str, Any], count: int, sources: Sequence[ConfiguredLayer]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists by layer, and those of layers' numbers, as the output has them."""
    for key, value in part.items():
        if not isinstance(value, list):
            continue
        if key in _NUMBERS:
            yield key, [new for new, source in enumerate(sources) if source[1] in _value(source, key, value)]
        elif len(value) == count and not key.endswith(_NO_VALUES):
            of_sources = [_value(source, key, value) for source in sources]
            numbers = [number for _, number in sources]
            yield (
                key,
                [own[n] if n < len(own) else value[-1] for own, n in zip(of_sources, numbers, strict=True)],
            )


def _stages(part: Mapping[str, Any], count: int, layers: int) -> dict[str, Any]:
    """Return whose outputs a backbone of so many layers hands on: as before, and the last for the last."""
    names = part.get("stage_names")
    if not isinstance(names, list) or len(names) != count + 1:
        return {}
    stages = [names[0], *(f"stage{number + 1}" for number in range(layers))]
    numbers = {number % len(names) for number in part.get("out_indices") or [count]}
    now = sorted({layers if number == count else min(number, layers) for number in numbers})
    return {"stage_names": stages, "out_indices": now, "out_features": [stages[number] for number in now]}


def _value(source: ConfiguredLayer, key: str, value: list[Any]) -> list[Any]:
    """Return a list of the configuration that a layer comes from, or else that of the output."""
    own = (source[0] or {}).get(key)
    return own if isinstance(own, list) else value


def _at(config: Mapping[str, Any] | None, place: str) -> Mapping[str, Any] | None:
    part = config.get(place) if config and place else config
    return part if isinstance(part, Mapping) else None
