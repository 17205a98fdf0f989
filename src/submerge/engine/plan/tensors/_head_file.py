"""Heads that lie in files of their own: the class texts of a CLIP, which no fine-tune of its images holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from submerge.errors import Problem, RequestError, few
from submerge.store import TensorEntry, read_header

__all__ = ["is_file", "read_head_file"]

TEXTS, SCALE = "class_texts", "logit_scale"


def is_file(pattern: str) -> bool:
    """Return whether an entry of `head` names a file, not tensors."""
    return pattern.endswith(".safetensors")


def read_head_file(
    path: Path, base: Mapping[str, TensorEntry], where: str
) -> tuple[dict[str, TensorEntry], list[Problem]]:
    """Return the tensors of a head's file, and what is wrong with it.

    `class_texts` [C, d] are the embeddings of the classes' texts, at any length, and `logit_scale` is the
    logarithm of the factor on cosines, as CLIP keeps it.
    """
    try:
        entries = dict(read_header(path).entries)
    except RequestError as error:
        return {}, list(error.problems)
    hint = f"a head's file holds {TEXTS} [classes, d] and {SCALE} [], floats"
    problems = []
    if wrong := sorted({TEXTS, SCALE} ^ entries.keys()):
        verb = "holds" if wrong[0] in entries else "lacks"
        problems.append(Problem(f"{path} {verb} {few(wrong)}", where, hint))
    texts, scale = entries.get(TEXTS), entries.get(SCALE)
    projected = base.get("visual_projection.weight")
    if projected is None:
        what = "class texts are compared with projected images, and the base has no visual_projection"
        problems.append(Problem(what, where, "take a CLIP with its projection as the base"))
    odd = [e for e in (texts, scale) if e is not None and not e.is_float]
    if odd or (texts and len(texts.shape) != 2) or (scale and scale.numel != 1):
        shapes = ", ".join(f"{name} {e.dtype} {list(e.shape)}" for name, e in entries.items())
        problems.append(Problem(f"{path} holds {shapes}", where, hint))
    elif texts and projected and texts.shape[1] != projected.shape[0]:
        what = f"{path}: class texts have {texts.shape[1]} numbers, projected images {projected.shape[0]}"
        problems.append(Problem(what, where, "take the texts of the same CLIP"))
    return ({} if problems else entries), problems
