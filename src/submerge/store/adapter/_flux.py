"""Updates of Flux's transformer under the names of the other of its two forms: the original's and diffusers'.

In the original queries, keys and values are rows of one map, and so is the first map of a single block's MLP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate

from submerge.store.adapter._computed import ComputedUpdate
from submerge.store.adapter._parts import LowRankPart, Part, StackedRows

__all__ = ["flux_parts"]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_ATTENTION = "transformer_blocks.{}.attn."
_SINGLE = "single_transformer_blocks.{}."
_TIME = "time_text_embed."
_MAPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("double_blocks.{}.img_attn.qkv", tuple(f"{_ATTENTION}to_{letter}" for letter in "qkv")),
    ("double_blocks.{}.txt_attn.qkv", tuple(f"{_ATTENTION}add_{letter}_proj" for letter in "qkv")),
    ("double_blocks.{}.img_attn.proj", (f"{_ATTENTION}to_out.0",)),
    ("double_blocks.{}.txt_attn.proj", (f"{_ATTENTION}to_add_out",)),
    ("double_blocks.{}.img_mlp.0", ("transformer_blocks.{}.ff.net.0.proj",)),
    ("double_blocks.{}.img_mlp.2", ("transformer_blocks.{}.ff.net.2",)),
    ("double_blocks.{}.txt_mlp.0", ("transformer_blocks.{}.ff_context.net.0.proj",)),
    ("double_blocks.{}.txt_mlp.2", ("transformer_blocks.{}.ff_context.net.2",)),
    ("double_blocks.{}.img_mod.lin", ("transformer_blocks.{}.norm1.linear",)),
    ("double_blocks.{}.txt_mod.lin", ("transformer_blocks.{}.norm1_context.linear",)),
    (
        "single_blocks.{}.linear1",
        (*(f"{_SINGLE}attn.to_{letter}" for letter in "qkv"), f"{_SINGLE}proj_mlp"),
    ),
    ("single_blocks.{}.linear2", (f"{_SINGLE}proj_out",)),
    ("single_blocks.{}.modulation.lin", (f"{_SINGLE}norm.linear",)),
    ("img_in", ("x_embedder",)),
    ("txt_in", ("context_embedder",)),
    ("time_in.in_layer", (f"{_TIME}timestep_embedder.linear_1",)),
    ("time_in.out_layer", (f"{_TIME}timestep_embedder.linear_2",)),
    ("vector_in.in_layer", (f"{_TIME}text_embedder.linear_1",)),
    ("vector_in.out_layer", (f"{_TIME}text_embedder.linear_2",)),
    ("guidance_in.in_layer", (f"{_TIME}guidance_embedder.linear_1",)),
    ("guidance_in.out_layer", (f"{_TIME}guidance_embedder.linear_2",)),
    ("final_layer.linear", ("proj_out",)),
)
"""Maps of the original, and what diffusers calls them, or the runs of their rows."""
_ORIGINAL = re.compile(r"(?P<root>(?:.+\.)?)double_blocks\.0\.img_attn\.qkv\.weight")
_DIFFUSERS = re.compile(r"(?P<root>(?:.+\.)?)single_transformer_blocks\.0\.proj_mlp\.weight")


def flux_parts(
    parts: Mapping[str, Part], shapes: Shapes, fits: Callable[[Part, Shape], bool]
) -> dict[str, Part] | None:
    """Return the parts of one form of Flux under the names of a base in the other.

    The names may have _ for the dots. None where the base is no Flux in either form, where a part is none of
    the maps of the other form or does not fit, and for DoRA of maps that are put together, or divided.
    """
    for marker, place in ((_ORIGINAL, _together), (_DIFFUSERS, _divided)):
        roots = {match["root"] for name in shapes if (match := marker.fullmatch(name))}
        if len(roots) == 1:
            found = place(parts, shapes, roots.pop())
            fitting = found and all(
                name in shapes and fits(part, shapes[name]) for name, part in found.items()
            )
            return found if fitting else None
    return None


def _matched(name: str, template: str) -> tuple[str, str] | None:
    """Return the number of a block and the last word of a name of a template's map, or None for others."""
    pattern = re.escape(template).replace(r"\{\}", r"(?P<block>\d+)").replace(r"\.", "[._]")
    match = re.fullmatch(rf"{pattern}\.(?P<leaf>weight|bias)", name)
    return (match.groupdict().get("block", ""), match["leaf"]) if match else None


def _together(parts: Mapping[str, Part], shapes: Shapes, root: str) -> dict[str, Part] | None:
    """Return diffusers' parts under the original's names, those of one map as runs of its rows."""
    found: dict[str, Part] = {}
    stacks: dict[str, list[tuple[int, LowRankPart | ComputedUpdate]]] = {}
    templates = [(whole, own, i) for whole, runs in _MAPS for i, own in enumerate(runs)]
    counts = {whole: len(runs) for whole, runs in _MAPS}
    for name, part in parts.items():
        places = ((whole, i, at) for whole, own, i in templates if (at := _matched(name, own)))
        whole, i, (block, leaf) = next(places, ("", 0, ("", "")))
        target = f"{root}{whole.format(block)}.{leaf}"
        if not whole or target not in shapes:
            return None
        if counts[whole] == 1:
            found[target] = part
        elif isinstance(part, LowRankPart | ComputedUpdate) and getattr(part, "magnitude", None) is None:
            width, rows = shapes[target][1], shapes[target][0]
            sizes = [width] * 3 + ([rows - 3 * width] if counts[whole] > 3 else [])
            if sum(sizes) != rows or _rows(part) != sizes[i]:
                return None
            stacks.setdefault(target, []).append((i * width, part))
        else:
            return None
    return found | {target: StackedRows(tuple(own), shapes[target]) for target, own in stacks.items()}


def _rows(part: LowRankPart | ComputedUpdate) -> int:
    return part.stored[0] if isinstance(part, LowRankPart) else part.matrix[0]


def _divided(parts: Mapping[str, Part], shapes: Shapes, root: str) -> dict[str, Part] | None:
    """Return the original's parts under diffusers' names, with those rows that are each map's."""
    found: dict[str, Part] = {}
    for name, part in parts.items():
        places = ((runs, at) for whole, runs in _MAPS if (at := _matched(name, whole)))
        runs, (block, leaf) = next(places, ((), ("", "")))
        targets = [f"{root}{own.format(block)}.{leaf}" for own in runs]
        if not targets or not all(target in shapes for target in targets):
            return None
        if len(targets) == 1:
            found[targets[0]] = part
            continue
        ends = list(accumulate(shapes[target][0] for target in targets))
        if not isinstance(part, LowRankPart) or part.magnitude is not None or part.stored[0] != ends[-1]:
            return None
        for target, top, end in zip(targets, [0, *ends], ends, strict=False):
            found[target] = replace(part, rows=(top, end))
    return found
