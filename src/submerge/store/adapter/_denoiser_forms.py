"""Updates of denoisers under the names of the other of their two forms: the original's and diffusers'.

So it is for Flux, Flux.2 and SD 3, by the names in diffusers' scripts of conversion. In the original queries,
keys and values are rows of one map, and so is the first map of a single block's MLP of Flux. The last
modulation has shift before scale there, and scale before shift in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

from submerge.store.adapter._computed import ComputedUpdate
from submerge.store.adapter._parts import LowRankPart, Part, StackedRows

__all__ = ["other_form"]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
Maps: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""Maps of the original, and what diffusers calls them, or the runs of their rows."""

_ATTENTION = "transformer_blocks.{}.attn."
_SINGLE = "single_transformer_blocks.{}."
_TIME = "time_text_embed."
_SWAPPED = "final_layer.adaLN_modulation.1"
_FINAL: Maps = (("final_layer.linear", ("proj_out",)), (_SWAPPED, ("norm_out.linear",)))
_FLUX: Maps = (
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
    *_FINAL,
)
_GUIDED = "time_guidance_embed."
_FLUX_2: Maps = (
    *(entry for entry in _FLUX if re.match(r"double_blocks\.\{\}\.\w+_attn\.|img_in|txt_in", entry[0])),
    ("double_blocks.{}.img_mlp.0", ("transformer_blocks.{}.ff.linear_in",)),
    ("double_blocks.{}.img_mlp.2", ("transformer_blocks.{}.ff.linear_out",)),
    ("double_blocks.{}.txt_mlp.0", ("transformer_blocks.{}.ff_context.linear_in",)),
    ("double_blocks.{}.txt_mlp.2", ("transformer_blocks.{}.ff_context.linear_out",)),
    ("single_blocks.{}.linear1", (f"{_SINGLE}attn.to_qkv_mlp_proj",)),
    ("single_blocks.{}.linear2", (f"{_SINGLE}attn.to_out",)),
    ("double_stream_modulation_img.lin", ("double_stream_modulation_img.linear",)),
    ("double_stream_modulation_txt.lin", ("double_stream_modulation_txt.linear",)),
    ("single_stream_modulation.lin", ("single_stream_modulation.linear",)),
    ("time_in.in_layer", (f"{_GUIDED}timestep_embedder.linear_1",)),
    ("time_in.out_layer", (f"{_GUIDED}timestep_embedder.linear_2",)),
    ("guidance_in.in_layer", (f"{_GUIDED}guidance_embedder.linear_1",)),
    ("guidance_in.out_layer", (f"{_GUIDED}guidance_embedder.linear_2",)),
    *_FINAL,
)
_CONTEXT = "joint_blocks.{}.context_block.adaLN_modulation.1"
"""The modulation of SD 3's text, which in the last block has shift and scale alone."""
_SD_3: Maps = (
    ("joint_blocks.{}.x_block.attn.qkv", tuple(f"{_ATTENTION}to_{letter}" for letter in "qkv")),
    ("joint_blocks.{}.context_block.attn.qkv", tuple(f"{_ATTENTION}add_{letter}_proj" for letter in "qkv")),
    (
        "joint_blocks.{}.x_block.attn2.qkv",
        tuple(f"transformer_blocks.{{}}.attn2.to_{letter}" for letter in "qkv"),
    ),
    ("joint_blocks.{}.x_block.attn.proj", (f"{_ATTENTION}to_out.0",)),
    ("joint_blocks.{}.context_block.attn.proj", (f"{_ATTENTION}to_add_out",)),
    ("joint_blocks.{}.x_block.attn2.proj", ("transformer_blocks.{}.attn2.to_out.0",)),
    ("joint_blocks.{}.x_block.mlp.fc1", ("transformer_blocks.{}.ff.net.0.proj",)),
    ("joint_blocks.{}.x_block.mlp.fc2", ("transformer_blocks.{}.ff.net.2",)),
    ("joint_blocks.{}.context_block.mlp.fc1", ("transformer_blocks.{}.ff_context.net.0.proj",)),
    ("joint_blocks.{}.context_block.mlp.fc2", ("transformer_blocks.{}.ff_context.net.2",)),
    ("joint_blocks.{}.x_block.adaLN_modulation.1", ("transformer_blocks.{}.norm1.linear",)),
    (_CONTEXT, ("transformer_blocks.{}.norm1_context.linear",)),
    ("x_embedder.proj", ("pos_embed.proj",)),
    ("context_embedder", ("context_embedder",)),
    ("t_embedder.mlp.0", (f"{_TIME}timestep_embedder.linear_1",)),
    ("t_embedder.mlp.2", (f"{_TIME}timestep_embedder.linear_2",)),
    ("y_embedder.mlp.0", (f"{_TIME}text_embedder.linear_1",)),
    ("y_embedder.mlp.2", (f"{_TIME}text_embedder.linear_2",)),
    *_FINAL,
)


@dataclass(frozen=True)
class _Family:
    """Denoisers of one kind: a map that the original alone has, one of diffusers alone, and all maps."""

    original: str
    diffusers: str
    maps: Maps

    def root(self, marker: str, shapes: Shapes) -> str | None:
        """Return what stands before the names of a base with such a map, where there is one."""
        ending = f"{marker}.weight"
        roots = {name.removesuffix(ending) for name in shapes if f".{name}".endswith(f".{ending}")}
        return roots.pop() if len(roots) == 1 else None


# the first whose map a base has: later ones share names with those before
_FAMILIES = (
    _Family("double_stream_modulation_img.lin", "single_transformer_blocks.0.attn.to_qkv_mlp_proj", _FLUX_2),
    _Family("double_blocks.0.img_attn.qkv", "single_transformer_blocks.0.proj_mlp", _FLUX),
    _Family("joint_blocks.0.x_block.attn.qkv", "transformer_blocks.0.attn.add_q_proj", _SD_3),
)


def other_form(
    parts: Mapping[str, Part], shapes: Shapes, fits: Callable[[Part, Shape], bool]
) -> dict[str, Part] | None:
    """Return the parts of one form of a denoiser under the names of a base in the other.

    The names may have _ for the dots. None where the base is none of the denoisers in either form, where a
    part is none of the maps of the other form or does not fit, and for DoRA of maps that are put together,
    divided, or have rows in another order.
    """
    for family in _FAMILIES:
        for marker, place in ((family.original, _together), (family.diffusers, _divided)):
            root = family.root(marker, shapes)
            if root is None:
                continue
            found = place(parts, shapes, root, family.maps)
            fitting = found and all(
                name in shapes and fits(part, shapes[name]) for name, part in found.items()
            )
            return found if fitting else None
    return None


def _in_order(whole: str, part: Part, shape: Shape) -> Part | None:
    """Return the update of a map whose rows may be in another order; None where it cannot be had."""
    of_last_block = len(shape) < 2 or shape[0] == 2 * shape[1]  # of a bias that is not known
    if whole != _SWAPPED and not (whole == _CONTEXT and of_last_block):
        return part
    half = shape[0] // 2
    if not isinstance(part, LowRankPart) or part.magnitude is not None or part.stored[0] != shape[0]:
        return None
    return StackedRows(
        ((0, replace(part, rows=(half, 2 * half))), (half, replace(part, rows=(0, half)))), shape
    )


def _matched(name: str, template: str) -> tuple[str, str] | None:
    """Return the number of a block and the last word of a name of a template's map, or None for others."""
    pattern = re.escape(template).replace(r"\{\}", r"(?P<block>\d+)").replace(r"\.", "[._]")
    match = re.fullmatch(rf"{pattern}\.(?P<leaf>weight|bias)", name)
    return (match.groupdict().get("block", ""), match["leaf"]) if match else None


def _together(parts: Mapping[str, Part], shapes: Shapes, root: str, maps: Maps) -> dict[str, Part] | None:
    """Return diffusers' parts under the original's names, those of one map as runs of its rows."""
    found: dict[str, Part] = {}
    stacks: dict[str, list[tuple[int, LowRankPart | ComputedUpdate]]] = {}
    templates = [(whole, own, i) for whole, runs in maps for i, own in enumerate(runs)]
    counts = {whole: len(runs) for whole, runs in maps}
    for name, part in parts.items():
        places = ((whole, i, at) for whole, own, i in templates if (at := _matched(name, own)))
        whole, i, (block, leaf) = next(places, ("", 0, ("", "")))
        target = f"{root}{whole.format(block)}.{leaf}"
        if not whole or target not in shapes:
            return None
        if counts[whole] == 1:
            if (ordered := _in_order(whole, part, shapes[target])) is None:
                return None
            found[target] = ordered
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


def _divided(parts: Mapping[str, Part], shapes: Shapes, root: str, maps: Maps) -> dict[str, Part] | None:
    """Return the original's parts under diffusers' names, with those rows that are each map's."""
    found: dict[str, Part] = {}
    for name, part in parts.items():
        places = ((whole, runs, at) for whole, runs in maps if (at := _matched(name, whole)))
        whole, runs, (block, leaf) = next(places, ("", (), ("", "")))
        targets = [f"{root}{own.format(block)}.{leaf}" for own in runs]
        if not targets or not all(target in shapes for target in targets):
            return None
        if len(targets) == 1:
            if (ordered := _in_order(whole, part, shapes[targets[0]])) is None:
                return None
            found[targets[0]] = ordered
            continue
        ends = list(accumulate(shapes[target][0] for target in targets))
        if not isinstance(part, LowRankPart) or part.magnitude is not None or part.stored[0] != ends[-1]:
            return None
        for target, top, end in zip(targets, [0, *ends], ends, strict=False):
            found[target] = replace(part, rows=(top, end))
    return found
