"""What configurations say of the kinship of models: their types, and those of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["is_composite", "model_types", "related"]

_OF_A_PART = frozenset(("depth", "embed_dim", "hidden_size", "model_type", "num_hidden_layers"))
"""Keys of which the configuration of a part has one, and that of, say, a generation has none."""


def model_types(config: Mapping[str, Any] | None) -> list[str]:
    """Return the model types that a configuration names, its own first, then those of its parts."""
    parts = [config or {}, *(v for k, v in (config or {}).items() if k.endswith("_config"))]
    return [str(p["model_type"]) for p in parts if isinstance(p, Mapping) and p.get("model_type")]


def related(own: Sequence[str], base: Sequence[str]) -> bool:
    """Return whether one of two models may be the other, or a part of it; True where nothing is said.

    Types of one family begin with the same word: a `qwen2` may be the language model of a `qwen2_vl`.
    """
    families = [{kind.replace("-", "_").partition("_")[0] for kind in kinds} for kinds in (own, base)]
    return not own or not base or bool(families[0] & families[1])


def is_composite(config: Mapping[str, Any] | None) -> bool:
    """Return whether a model is made of several, each with a configuration of its own."""
    parts = [v for k, v in (config or {}).items() if k.endswith("_config") and isinstance(v, Mapping)]
    return any(_OF_A_PART & part.keys() for part in parts)
