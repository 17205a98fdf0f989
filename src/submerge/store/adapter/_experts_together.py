"""Updates of single experts, put together as one update of the parameter in which a base packs them.

Adapters that were trained while each expert was a module (in transformers 4, and in quantised copies of
models with packed experts) have factors for each expert's matrices. Of an expert with two of them,

    [Δ_1; Δ_2] = [[B_1, 0], [0, B_2]] [A_1; A_2]
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from submerge.errors import Problem, RequestError, few
from submerge.names import layer_index, without_wrappers
from submerge.store.adapter._parts import ExpertMatrix, LowRankPart, PackedExperts, Part

__all__ = ["experts_together"]

Shapes = Mapping[str, tuple[int, ...]]

_SINGLE = re.compile(
    r"(?P<head>.+\.experts)\.(?:(?P<expert>\d+)\.(?P<leaf>gate_proj|up_proj|down_proj|w[123])"
    r"|(?P<list>gate_up_projs|down_projs)\.(?P<number>\d+))\.weight"
)
_PACKED = re.compile(r"(?P<head>.+\.experts)\.(?P<leaf>gate_up_proj|up_proj|down_proj)")
# which matrices are in which packed parameter, one below the other
_MATRICES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("gate_up_projs",)),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",), ("down_projs",)),
}


@dataclass(frozen=True)
class _Single:
    """The update of an expert's matrix, by its own name; `number` is its place `among` the expert's."""

    name: str
    part: LowRankPart
    expert: int
    number: int
    among: tuple[str, ...]


def experts_together(parts: Mapping[str, Part], shapes: Shapes, where: str) -> dict[str, Part]:
    """Return the parts with those of single experts as one, where the base packs the experts of a layer.

    Experts and matrices without an update of their own have none in the packed one. Raises `RequestError`
    where the base's shapes are not those of the adapter's experts.
    """
    packed = _packed_parameters(shapes)
    groups: defaultdict[str, list[_Single]] = defaultdict(list)
    for name, part in parts.items() if packed.places else ():
        match = _SINGLE.fullmatch(name)
        if match is None or name in shapes or not isinstance(part, LowRankPart) or part.magnitude is not None:
            continue
        own = match["leaf"] or match["list"]
        for leaf, matrices in _MATRICES.items():
            among = next((names for names in matrices if own in names), None)
            if among and packed.shape(match["head"], leaf):
                expert = int(match["expert"] or match["number"])
                groups[f"{match['head']}.{leaf}"].append(_Single(name, part, expert, among.index(own), among))
                break
    grouped = {single.name for group in groups.values() for single in group}
    together = {name: part for name, part in parts.items() if name not in grouped}
    problems = []
    for name, group in groups.items():
        shape = packed.shape(*name.rsplit(".", 1))
        assert shape is not None  # of which the group was made
        if (made := _together(group, shape)) is not None:
            together[name] = made
            continue
        updates = few(sorted({str(list(single.part.stored)) for single in group}))
        what = f"{few([single.name for single in group])} are updates of the shape {updates}"
        hint = "give the base that it was trained on, or merge it with PEFT (merge_and_unload)"
        problems.append(Problem(f"{what}, but the base packs experts as {list(shape)}", where, hint))
    if problems:
        raise RequestError(problems[:3])
    return together


@dataclass(frozen=True)
class _PackedShapes:
    """The shapes of packed experts: by the layer's index and the parameter's name, and then by the stack."""

    places: Mapping[tuple[int, str], Mapping[str, tuple[int, ...]]]

    def shape(self, head: str, leaf: str) -> tuple[int, ...] | None:
        """Return the shape of `leaf` of the experts that an adapter calls `head`; None where it is not known.

        A base may have several stacks of layers with experts. That of another name counts where it is alone.
        """
        stacks = self.places.get((layer_index(head), leaf), {})
        alone = next(iter(stacks.values())) if len(stacks) == 1 else None
        return stacks.get(without_wrappers(head), alone)


def _packed_parameters(shapes: Shapes) -> _PackedShapes:
    places: defaultdict[tuple[int, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        if len(shape) == 3 and (match := _PACKED.fullmatch(name)):
            places[layer_index(name), match["leaf"]][without_wrappers(match["head"])] = shape
    return _PackedShapes(dict(places))


def _together(group: list[_Single], shape: tuple[int, ...]) -> PackedExperts | None:
    """Return one part for the updates of a layer's experts, or None where they do not fit the parameter.

    A matrix of an expert is [outputs, inputs]. Where the inputs come first in the packed parameter, the
    columns of two matrices may lie in turns, and these are not put together.
    """
    first, among = group[0].part, group[0].among
    outputs, inputs = first.stored
    height = outputs * len(among)
    alike = all((single.part.stored, single.among) == ((outputs, inputs), among) for single in group)
    if not alike or max(single.expert for single in group) >= shape[0]:
        return None
    # the lists of single maps are of gpt-oss, which has inputs first
    by_inputs = among[0].endswith("s") if outputs == inputs else shape[1:] == (inputs, height)
    if shape[1:] != ((inputs, height) if by_inputs else (height, inputs)) or (by_inputs and len(among) > 1):
        return None
    return PackedExperts(
        left_entry=first.left_entry,
        right_entry=first.right_entry,
        scale=first.scale,
        transposed=by_inputs,
        experts=shape[0],
        kind="parameter",
        matrices=tuple(ExpertMatrix(own.part, own.expert, own.number * outputs) for own in group),
        height=height,
    )
