"""Which module of a model a tensor belongs to, where a recipe merges modules apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["module_of_each"]

_PATHS: Mapping[str, tuple[str, ...]] = {
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "vision_model": ("vision_tower", "vision_model", "visual"),
    "audio_tower": ("audio_tower", "audio_model", "audio_encoder"),
    "multi_modal_projector": (
        "multi_modal_projector",
        "mm_projector",
        "visual.merger",
        "visual.deepstack_merger_list",
        "aligner",
        "connector",
    ),
    "shared": ("shared", "lm_head"),
}
"""What files call the modules that recipes name as mergekit's architectures do."""
_LANGUAGE_MODELS = ("", "default", "text_decoder", "language_model")
"""Names of the module that has all that no other one has: embeddings and head lie beside its layers."""


def module_of_each(names: Iterable[str], modules: Sequence[str]) -> dict[str, str | None]:
    """Return for each tensor the module that it belongs to, None where that is none of `modules`.

    A module is a path in tensors' names, or one of those by which several architectures go. The longest path
    decides; the language model has all tensors that are in no other module.

    Examples:
        >>> from submerge.names import module_of_each
        >>> names = ["visual.blocks.0.norm.weight", "visual.merger.norm.weight", "lm_head.weight"]
        >>> list(module_of_each(names, ["text_decoder", "vision_tower", "multi_modal_projector"]).values())
        ['vision_tower', 'multi_modal_projector', 'text_decoder']
    """
    rest = next((module for module in modules if module in _LANGUAGE_MODELS), None)
    paths = {path: module for module in modules if module != rest for path in _PATHS.get(module, (module,))}
    longest_first = sorted(paths, key=len, reverse=True)
    return {
        name: next((paths[path] for path in longest_first if f".{path}." in f".{name}"), rest)
        for name in names
    }
