"""Experts packed into one parameter [E, …]: which side of an expert A acts on, and experts that lie apart.

Up to PEFT 0.18 A acts on the second dimension of the parameter and B on the third, whatever they mean. Since
0.19.1 A acts on the inputs, which are the third dimension in most models and the second in a few (gpt-oss).
0.19.0 took the third dimension for those few, and the second for all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from submerge.errors import Problem, RequestError, few
from submerge.names import layer_index
from submerge.store.adapter._parts import LowRankPart, PackedExperts, Part

__all__ = ["experts_apart", "settled_experts"]

Shapes = Mapping[str, tuple[int, ...]]

_PACKED = re.compile(r"(?P<head>.+)\.experts\.(?P<leaf>gate_up_proj|up_proj|down_proj)")
# for each packed parameter the names under which checkpoints keep an expert's matrices apart
_APART = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
_FIRST = re.compile(r"\.experts\.0\.(?P<leaf>gate_proj|up_proj|down_proj|w[123])\.weight$")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(\.?dev|rc)?")


@dataclass(frozen=True)
class _Matrices:
    """The size of an expert's packed parameter, and which of its rows each matrix is (None: all)."""

    size: tuple[int, int]
    rows: Mapping[str, tuple[int, int] | None]


def experts_apart(
    parts: Mapping[str, Part], shapes: Shapes, version: str | None, where: str
) -> dict[str, Part]:
    """Return the parts with packed experts as one part each, where the base keeps each by itself.

    `version` is PEFT's, as the configuration says. Raises `RequestError` where the shapes of the base's
    experts do not tell which factor acts on which side of them, nor the version.
    """
    packed = {
        name: (match, part)
        for name, part in parts.items()
        if isinstance(part, LowRankPart)
        and part.experts
        and name not in shapes
        and (match := _PACKED.fullmatch(name))
    }
    first = _first_experts(shapes) if packed else {}
    cut = {name: _matrices(match["leaf"], layer_index(name), first) for name, (match, _) in packed.items()}
    apart = {name: matrices for name, matrices in cut.items() if matrices is not None}
    sizes = {name: matrices.size for name, matrices in apart.items()}
    transposed = _transposed({name: packed[name][1] for name in apart}, sizes, False, version, where)
    by_expert = {name: part for name, part in parts.items() if name not in apart}
    for name, matrices in apart.items():
        match, part = packed[name]
        for leaf, rows in matrices.rows.items():
            matrix = replace(part, rows=rows, transposed=transposed[name], settled=True, kind="linear")
            for expert in range(part.experts):
                by_expert[f"{match['head']}.experts.{expert}.{leaf}.weight"] = replace(matrix, expert=expert)
    return by_expert


def settled_experts(
    parts: Mapping[str, Part], shapes: Shapes, version: str | None, where: str
) -> dict[str, Part]:
    """Return the parts, by the base's names, with packed experts in the layout in which the base stores them.

    Raises `RequestError` as `experts_apart` does.
    """
    packed = {
        name: part
        for name, part in parts.items()
        if isinstance(part, LowRankPart)
        and part.experts
        and part.expert is None
        and not isinstance(part, PackedExperts)
    }
    sizes = {name: (shapes[name][-2], shapes[name][-1]) for name in packed}
    transposed = _transposed(packed, sizes, _inputs_first(shapes), version, where)
    return {
        name: replace(part, transposed=transposed[name], settled=True)
        if isinstance(part, LowRankPart) and name in transposed
        else part
        for name, part in parts.items()
    }


def _transposed(
    parts: Mapping[str, LowRankPart],
    sizes: Mapping[str, tuple[int, int]],
    inputs_first: bool | None,
    version: str | None,
    where: str,
) -> dict[str, bool]:
    """Return, for each part, whether an expert [rows, columns] is (B A)ᵀ and not B A.

    Shapes tell it for some, and one adapter is of one layout; else the version does.
    """
    # an expert of unequal sides tells the layout, a square one cannot; but one program trained all of them:
    # those that tell vote for the others
    fits = {name: (_fits(part, sizes[name]), _fits(part, sizes[name][::-1])) for name, part in parts.items()}
    votes = {transposed for plain, transposed in fits.values() if plain != transposed}
    by_version = _by_version(version, inputs_first)
    layout = votes.pop() if len(votes) == 1 else by_version
    unknown = [name for name, (plain, transposed) in fits.items() if plain and transposed and layout is None]
    if unknown:
        what = f"{few(unknown)}: shapes do not tell which factor acts on which side of an expert"
        hint = (
            "PEFT changed this in 0.19.1: add the version that trained it to adapter_config.json as "
            'peft_version ("0.18.1", …), or merge it with PEFT (merge_and_unload)'
        )
        raise RequestError(Problem(what, where, hint))
    return {
        name: bool(layout) if plain == transposed else transposed
        for name, (plain, transposed) in fits.items()
    }


def _fits(part: LowRankPart, size: tuple[int, int]) -> bool:
    """Return whether B A has this size."""
    return (part.left_entry.shape[0], part.right_entry.shape[1]) == size


def _by_version(version: str | None, inputs_first: bool | None) -> bool | None:
    """Return whether an expert is (B A)ᵀ by the version of PEFT, or None where that cannot be known."""
    match = _VERSION.match(version or "")
    if match is None:  # before 0.18, or not PEFT: where inputs come first, all layouts but one agree
        return True if inputs_first else None
    number = (int(match[1]), int(match[2]), int(match[3] or 0))
    if match[4] and (0, 18, 2) <= number <= (0, 19, 1):
        return None
    if number < (0, 19, 0):
        return True
    return inputs_first if number > (0, 19, 0) or inputs_first is None else not inputs_first


def _inputs_first(shapes: Shapes) -> bool | None:
    """Return whether the base keeps packed experts as [E, inputs, outputs]; None where nothing tells.

    gate_up_proj is [E, hidden, 2 · inner] and down_proj [E, inner, hidden], or both are the other way round.
    """
    votes = set()
    for name, shape in shapes.items():
        down = shapes.get(f"{name.removesuffix('gate_up_proj')}down_proj", ())
        if name.endswith("gate_up_proj") and len(shape) == len(down) == 3:
            if shape[1:] == (down[2], 2 * down[1]):
                votes.add(True)
            if shape[1:] == (2 * down[2], down[1]):
                votes.add(False)
    return votes.pop() if len(votes) == 1 else None


def _first_experts(shapes: Shapes) -> dict[tuple[int, str], tuple[int, int]]:
    """Return the shapes of the first expert's matrices, by the layer's index and the matrix' name."""
    return {
        (layer_index(name), match["leaf"]): (shape[0], shape[1])
        for name, shape in shapes.items()
        if (match := _FIRST.search(name)) and len(shape) == 2
    }


def _matrices(leaf: str, layer: int, first: Mapping[tuple[int, str], tuple[int, int]]) -> _Matrices | None:
    """Return how a packed parameter of a layer is cut into matrices, or None where none lie apart."""
    for leaves in _APART[leaf]:
        sizes = [first[layer, own] for own in leaves if (layer, own) in first]
        if len(sizes) < len(leaves):
            continue
        rows = sum(size[0] for size in sizes)
        if len(leaves) == 1:
            return _Matrices((rows, sizes[0][1]), {leaves[0]: None})
        return _Matrices((rows, sizes[0][1]), {leaves[0]: (0, sizes[0][0]), leaves[1]: (sizes[0][0], rows)})
    return None
