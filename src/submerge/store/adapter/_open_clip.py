"""Updates of CLIP's text encoder, for a base that has it in OpenCLIP's form: checkpoints of SD 2 and of SDXL.

There the maps of queries, keys and values are rows of one parameter, and others have other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from submerge.store.adapter._composed import Composed
from submerge.store.adapter._parts import LowRankPart, Part, StackedRows

__all__ = ["has_open_clip", "open_clip_parts"]

Shape = tuple[int, ...]

_PACKED = re.compile(r"(?P<root>.+\.)?transformer\.resblocks\.\d+\.attn\.in_proj_weight")
_MAP = re.compile(
    r"(?:text_model[._])?encoder[._]layers[._](?P<layer>\d+)[._](?:self_attn[._](?P<third>[qkv])_proj"
    r"|(?P<other>self_attn[._]out_proj|mlp[._]fc[12]))\.weight"
)
_PROJECTION = re.compile(r"text_projection\.weight")
_OTHERS = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def has_open_clip(shapes: Mapping[str, Shape]) -> bool:
    """Return whether a model has a text encoder in OpenCLIP's form."""
    return any(_PACKED.fullmatch(name) for name in shapes)


def open_clip_parts(
    parts: Mapping[str, Part], shapes: Mapping[str, Shape], fits: Callable[[Part, Shape], bool]
) -> dict[str, Part] | None:
    """Return the parts of CLIP's text encoder under the names of the base's in OpenCLIP's form.

    None where the base has not one such encoder, where a part is none of its maps or does not fit, and for
    DoRA, whose norms are those of rows of maps.
    """
    roots = {match["root"] or "" for name in shapes if (match := _PACKED.fullmatch(name))}
    if len(roots) != 1:
        return None
    (root,) = roots
    found: dict[str, Part] = {}
    stacks: dict[str, list[tuple[int, LowRankPart | Composed]]] = {}
    for name, part in parts.items():
        match = _MAP.fullmatch(name)
        if not isinstance(part, LowRankPart | Composed) or getattr(part, "magnitude", None) is not None:
            return None
        if match is None:
            if not _PROJECTION.fullmatch(name) or not isinstance(part, LowRankPart):
                return None
            found[f"{root}text_projection"] = replace(part, transposed=True)  # it is multiplied from the left
            continue
        block = f"{root}transformer.resblocks.{match['layer']}."
        if match["other"]:
            leaf = match["other"].replace("_fc", ".fc").replace("attn_out", "attn.out")
            found[f"{block}{_OTHERS[leaf]}.weight"] = part
            continue
        target = f"{block}attn.in_proj_weight"
        rows = shapes.get(target, (0, 0))[0] // 3
        if target not in shapes or not fits(part, (rows, shapes[target][1])):
            return None
        stacks.setdefault(target, []).append((rows * "qkv".index(match["third"]), part))
    found |= {name: StackedRows(tuple(own), shapes[name]) for name, own in stacks.items()}
    return found if all(name in shapes and fits(part, shapes[name]) for name, part in found.items()) else None
