"""The parts of a model with an encoder, a projector and a language model, read from names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from submerge.names._layers import layer_of
from submerge.names._view import Shape

__all__ = [
    "MultimodalParts",
    "has_layers",
    "is_output_head",
    "module_prefix",
    "multimodal_parts",
    "projector_of",
]

_WRAPPERS = ("model", "base_model", "module")
_TABLES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
"""What transformers' language models call their table of tokens."""


@dataclass(frozen=True)
class MultimodalParts:
    """Where a multimodal model has its encoders and its projector: prefixes of its tensors' names."""

    encoders: tuple[str, ...]
    projector: str

    def in_projector(self, name: str) -> bool:
        """Return whether a tensor is one of the projector."""
        return name.startswith(f"{self.projector}.")

    def in_encoder(self, name: str) -> bool:
        """Return whether a tensor is one of an encoder."""
        return name.startswith(tuple(f"{prefix}." for prefix in self.encoders))


def projector_of(shapes: Mapping[str, Shape]) -> str | None:
    """Return the path of the projector: what stands between an encoder and the language model.

    None where there is none, or where it cannot be told by names and shapes.

    Args:
        shapes: of all tensors, by the names of a checkpoint, or of a model's `state_dict`: the path is one of
            the same kind.

    Examples:
        >>> from submerge.names import projector_of
        >>> text = {"language_model.embed_tokens.weight": (9, 4), "language_model.layers.0.up.weight": (4, 4)}
        >>> image = {"vision_tower.layers.0.fc.weight": (8, 8), "projector.linear.weight": (4, 8)}
        >>> projector_of({**image, **text})
        'projector'
        >>> print(projector_of(text))
        None
    """
    parts = multimodal_parts(shapes)
    return parts.projector if parts else None


def multimodal_parts(shapes: Mapping[str, Shape]) -> MultimodalParts | None:
    """Return the parts of a multimodal model, or None of another one.

    An encoder is a module with layers that has no table of tokens. The projector is the one module without
    layers that has a matrix and is neither a table nor an output head. Parameters that belong to no module,
    as `image_newline`, are no part. The language model has layers, too: a BERT, whose only ones are those of
    its `encoder`, is no multimodal model with a projector called `pooler`.
    """
    modules: dict[str, list[str]] = {}
    for name in shapes:
        if (prefix := module_prefix(name)) != name and not is_output_head(name):
            modules.setdefault(prefix, []).append(name)
    tables = {prefix for prefix, names in modules.items() if any(map(_is_table, names))}
    stacks = {prefix for prefix, names in modules.items() if has_layers(names)}
    encoders = {prefix for prefix in stacks - tables if not _is_stack(prefix, modules[prefix])}
    others = [
        prefix
        for prefix, names in modules.items()
        if prefix not in tables | stacks and any(len(shapes[name]) == 2 for name in names)
    ]
    language = modules.keys() - encoders - set(others)
    has_language_layers = any(layer_of(name) for prefix in language for name in modules[prefix])
    if not tables or not encoders or not has_language_layers or len(others) != 1:
        return None
    return MultimodalParts(tuple(sorted(encoders)), others[0])


def has_layers(names: Iterable[str]) -> bool:
    """Return whether a module whose tensors have these names has a stack of layers."""
    return any(".layer" in name or ".block" in name for name in names if layer_of(name))


def _is_stack(prefix: str, names: Iterable[str]) -> bool:
    """Return whether a module is itself a stack of layers: that of a language model without a prefix."""
    return all((place := layer_of(name)) is not None and place[0] == prefix for name in names)


def _is_table(name: str) -> bool:
    return name.split(".")[-2:-1] in [[table] for table in _TABLES]


def is_output_head(name: str) -> bool:
    """Return whether a tensor is an output head, which files of tied models may have besides."""
    return f".{name}".endswith(".lm_head.weight")


def module_prefix(name: str) -> str:
    """Return a name up to the first word that says more than which wrapper a module sits in."""
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), 0)
    return ".".join(parts[: end + 1])
