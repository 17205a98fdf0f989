"""Modules that an adapter's configuration targets, and of which its file has no factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from submerge.errors import few

__all__ = ["missing_targets"]

# of these a tied one is trained under the name of the other
_TABLES = frozenset({"embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embed_in", "embed_out"})


def missing_targets(
    config: Mapping[str, Any], adapted: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Return, in words, which listed `target_modules` the base has and the adapter has nothing of.

    PEFT trains all modules with these names. A file without one of them was not saved in full, or its model
    had them in another form, as experts that are packed. `adapted` are the parameters that are changed.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("exclude_modules"):
        return ()
    wanted = {name for name in targets if isinstance(name, str)} - _TABLES
    wanted -= set(config.get("modules_to_save") or ())
    here = {name for name in wanted if _is_any(name, adapted)}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    missing = sorted(name for name in wanted - here if _is_any(name, matrices))
    if not missing or not here:
        return ()
    why = "in PEFT a word of a module's path may be another adapter's name"
    return (
        f"target_modules names {few(missing)}, which the base has, and of which the file holds no factors: "
        f"if it was not saved in full ({why}), save it again",
    )


def _is_any(module: str, parameters: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{module}.weight") for name in parameters)
