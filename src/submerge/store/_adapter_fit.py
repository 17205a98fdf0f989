"""An adapter fitted to a base: names as the base has them, shapes settled and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from submerge.errors import Problem, RequestError
from submerge.store._adapter import Adapter
from submerge.store._adapter_parts import LowRank, Part, Rows
from submerge.store._names import layer_of
from submerge.store._prefixes import match_names

__all__ = ["fit_adapter"]

_HEAD = re.compile(
    r"(?:^|\.)((?:lm_head|embed_out|proj_out|lm_loss|vocab_projector|generator_lm_head"
    r"|(?:lm_head|predictions)\.decoder)\.weight)$"
)
_UNTIE = (
    "untie the base: load it with from_pretrained(…, tie_word_embeddings=False), copy the embedding's weight "
    "into the head's, save that with save_pretrained and name it; or train with ensure_weight_tying=True"
)
# experts that Transformers packs into two tensors, and the names under which checkpoints keep them apart
_PACKED = ".mlp.experts."
_APART = (
    (".mlp.experts.", ("gate_proj", "up_proj"), "down_proj"),
    (".block_sparse_moe.experts.", ("w1", "w3"), "w2"),
)


def fit_adapter(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Return the adapter with its parts under the base's names, by the shapes of the base's tensors.

    Prefixes are matched as `match_names` does, packed experts are taken apart where the base keeps them
    apart, and what only the base can tell (whether a parameter is stored transposed) is settled. Raises
    `RequestError` with every part that the base has no place for, or a place of another shape.
    """
    where = str(adapter.path)
    tied, problems = _tied_head(adapter, shapes)
    parts = _taken_apart({name: part for name, part in adapter.parts.items() if name not in tied}, shapes)
    try:
        matched = match_names(list(parts), list(shapes), where)
    except RequestError as error:
        raise RequestError([*problems, *error.problems]) from None
    fitted: dict[str, Part] = {}
    for name, part in parts.items():
        target = matched.names[name]
        fault, settled = _settled(part, shapes[target])
        if fault:
            what = f"{name} {fault}, but the base has {list(shapes[target])}"
            problems.append(Problem(what, where, _hint(part, shapes[target])))
        fitted[target] = settled
    if problems:
        raise RequestError(problems[:5] + _rest(problems[5:], where))
    notes = (
        *adapter.notes,
        *(f"{name} is tied to the embeddings" for name in sorted(tied)),
        f"names matched with the base: {matched.description}",
    )
    fitted = _squares(_agree(fitted, shapes, where), shapes)
    names = {target: name for name, target in matched.names.items() if name in adapter.parts}
    return replace(adapter, parts=dict(sorted(fitted.items())), notes=notes, names=names)


def _tied_head(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[str], list[Problem]]:
    """Return the parts of an output head that the base ties to its embeddings, and why they cannot be."""
    heads = {name: found[1] for name in adapter.parts if (found := _HEAD.search(name))}
    tied = {name for name, head in heads.items() if not any(other.endswith(head) for other in shapes)}
    if not tied:
        return set(), []
    if adapter.config.get("ensure_weight_tying"):  # then PEFT trains one update for both
        return tied, []
    what = f"changes {min(tied)} by itself, but the base has no such tensor: it is tied to the embeddings"
    return tied, [Problem(what, str(adapter.path), _UNTIE)]


def _rest(problems: list[Problem], where: str) -> list[Problem]:
    return [Problem(f"and {len(problems)} more of this kind", where)] if problems else []


def _hint(part: Part, shape: tuple[int, ...]) -> str:
    found = part.stored if isinstance(part, LowRank) else part.shape or ()
    if len(found) == len(shape) and sum(a != b for a, b in zip(found, shape, strict=True)) == 1:
        return "was it trained on a base with another vocabulary, or of another size?"
    return "give the base that it was trained on"


def _settled(part: Part, shape: tuple[int, ...]) -> tuple[str, Part]:
    """Return (what does not fit, the part as this shape has it)."""
    if isinstance(part, Rows):
        tall = len(shape) == 2 and part.entry.shape[1] == shape[1] and max(part.indices, default=0) < shape[0]
        return "" if tall else f"has new values for rows up to {max(part.indices, default=0)}", part
    if not isinstance(part, LowRank):
        return "" if part.entry.shape == shape else f"has the shape {list(part.entry.shape)}", part
    for turned in (part, replace(part, transposed=not part.transposed)):
        single = turned.experts == 0 and len(shape) == 3 and shape == (1, *turned.stored)
        if turned.stored == shape or single:
            return "", replace(turned, settled=not part.experts or shape[-1] != shape[-2])
    return f"is an update of the shape {list(part.stored)}", part


def _agree(parts: dict[str, Part], shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Part]:
    """Return the parts with square experts turned as the other experts of the base are."""
    known = {
        part.transposed
        for part in parts.values()
        if isinstance(part, LowRank) and part.experts and part.settled
    }
    for name, shape in shapes.items():  # [E, hidden, 2 · inner], or [E, 2 · inner, hidden]
        if name.endswith("gate_up_proj") and len(shape) == 3 and shape[1] != shape[2]:
            down = shapes.get(name.removesuffix("gate_up_proj") + "down_proj", ())
            if down[1:] == (min(shape[1:]),) * 2:
                known.add(shape[1] < shape[2])
    problems = []
    for name, part in parts.items():
        if not isinstance(part, LowRank) or part.settled:
            continue
        if len(known) == 1:
            parts[name] = replace(part, transposed=known == {True}, settled=True)
        else:
            what = f"{name}: which side of each expert is its output is not known"
            problems.append(Problem(what, where, "merge it with PEFT (merge_and_unload)"))
    if problems:
        raise RequestError(problems[:5] + _rest(problems[5:], where))
    return parts


def _squares(parts: dict[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Return the parts with square matrices turned as the base's other matrices of that layer are.

    The adapter has one flag for all modules, which is wrong for some if it has both kinds. A bias of the
    base tells which side of its weight are the outputs.
    """
    votes: dict[tuple[str, int] | None, set[bool]] = {}
    for name, shape in shapes.items():
        bias = shapes.get(f"{name.removesuffix('.weight')}.bias")
        if len(shape) == 2 and shape[0] != shape[1] and bias in ((shape[0],), (shape[1],)):
            votes.setdefault(layer_of(name), set()).add(bias == (shape[1],))
    for name, part in parts.items():
        if not isinstance(part, LowRank) or part.experts or len(set(part.stored)) > 1 or part.kernel:
            continue
        found = votes.get(layer_of(name), set())
        if len(found) == 1 and part.kind == "linear":
            parts[name] = replace(part, transposed=found == {True})
    return parts


def _taken_apart(parts: Mapping[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Return the parts with packed experts as one part each, where the base keeps each by itself."""
    ends = {tuple(name.split(".")[-3:]) for name in shapes}
    found: dict[str, Part] = {}
    for name, part in parts.items():
        head, packed, last = name.rpartition(_PACKED)
        apart = next(
            ((path, pair, down) for path, pair, down in _APART if ("0", pair[0], "weight") in ends), None
        )
        if not (packed and apart and isinstance(part, LowRank) and part.experts) or name in shapes:
            found[name] = part
            continue
        path, pair, down = apart
        half = part.left_entry.shape[0] // 2
        spans: dict[str, dict[str, tuple[int, int] | None]]
        spans = {"down_proj": {down: None}, "gate_up_proj": {pair[0]: (0, half), pair[1]: (half, 2 * half)}}
        for expert in range(part.experts):
            for leaf, rows in spans.get(last, {}).items():
                one = replace(part, expert=expert, rows=rows, transposed=False, settled=True, kind="linear")
                found[f"{head}{path}{expert}.{leaf}.weight"] = one
    return found
