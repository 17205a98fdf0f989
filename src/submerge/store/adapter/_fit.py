"""An adapter fitted to a base: names as the base has them, shapes settled and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from submerge.errors import Problem, RequestError, few
from submerge.names import NameMatch, has_match, layer_of, match_names
from submerge.store.adapter._adapter import Adapter
from submerge.store.adapter._computed import ComputedUpdate, SizedUpdate
from submerge.store.adapter._entrywise import Hadamard
from submerge.store.adapter._experts import experts_apart, settled_experts
from submerge.store.adapter._experts_together import experts_together
from submerge.store.adapter._lora_fit import of_one_model
from submerge.store.adapter._parts import (
    Add,
    LowRankPart,
    PackedExperts,
    Part,
    Replace,
    Rows,
    SharedFactors,
    StackedRows,
    is_of_pipeline,
)
from submerge.store.adapter._transformed import Scaled, Transformed
from submerge.store.adapter._untold import lacking_parts

__all__ = ["fit_adapter"]

_HEAD = re.compile(
    r"(?:^|\.)((?:lm_head|embed_out|proj_out|lm_loss|vocab_projector|generator_lm_head"
    r"|(?:lm_head|predictions)\.decoder)\.weight)$"
)
_UNTIE = (
    "untie the base: load it with from_pretrained(…, tie_word_embeddings=False), copy the embedding's weight "
    "into the head's, save that with save_pretrained and name it; or train with ensure_weight_tying=True"
)
_ONE_TABLE = (
    "train the table in full, which PEFT ties: modules_to_save=['embed_tokens'] and ensure_weight_tying=True"
)
_SHARED = re.compile(r"(?:^|\.)shared\.weight$")
_OF_STACK = re.compile(r"(?:^|\.)((?:encoder|decoder)\.embed_tokens\.weight)$")
"""The names by which encoder and decoder look up the table that is called `shared`."""
_EXPERT = re.compile(r"\.experts\.\d+\.")
_PACKED = re.compile(r"\.experts\.(?:gate_up|gate|up|down)_proj(?:\.weight)?$")
_WithLayout = LowRankPart | Scaled | SizedUpdate | Hadamard
"""Parts that may be of a parameter which is stored as [inputs, outputs]."""
_TABLE = re.compile(r"(?:embed\w*|lm_head|wte|shared|word_embeddings)\.weight$")


@dataclass(frozen=True)
class _Settled:
    """A part in the layout in which the base stores its parameter, or what keeps it from fitting."""

    part: Part
    fault: str = ""


def fit_adapter(
    adapter: Adapter,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    other_shapes: bool = False,
    other_rows: bool = False,
) -> Adapter:
    """Return the adapter with its parts under the base's names, by the shapes of the base's tensors.

    Prefixes are matched as `match_names` does, packed experts are taken apart where the base keeps them
    apart, and what only the base can tell (whether a parameter is stored transposed) is settled. Raises
    `RequestError` with every part that the base has no place for, or a place of another shape. With
    `other_shapes` parts of another shape are left out, and listed in `unfit`, unless all are; with
    `other_rows` tables that were saved whole may have another number of rows.
    """
    where, version = str(adapter.path), adapter.config.get("peft_version")
    version = version if isinstance(version, str) else None
    if is_of_pipeline(adapter.form):
        adapter = of_one_model(
            adapter, shapes, lambda part, shape: not _settled(part, shape, either_layout=False).fault
        )
    tied, problems = _tied_head(adapter, shapes)
    parts = {name: part for name, part in adapter.parts.items() if name not in tied}
    parts = experts_together(experts_apart(parts, shapes, version, where), shapes, where)
    matched = _matched(parts, list(shapes), where, problems)
    fitted: dict[str, Part] = {}
    unfit: dict[str, tuple[int, ...]] = {}
    faults: list[Problem] = []
    for name, part in parts.items():
        target = matched.names[name]
        settled = _settled(part, shapes[target], either_layout=not is_of_pipeline(adapter.form))
        if settled.fault and not (other_rows and _is_resized(name, part, shapes[target])):
            what = f"{name} {settled.fault}, but the base has {list(shapes[target])}"
            faults.append(Problem(what, where, _hint(name, part, shapes[target])))
            unfit[target] = _shape(part)
        else:
            fitted[target] = settled.part
    if not other_shapes or not fitted:
        problems += faults
    if problems:
        raise RequestError(problems[:5] + _rest(problems[5:], where))
    notes = (
        *adapter.notes,
        *(f"{name} is tied to the embeddings" for name in sorted(tied)),
        f"names matched with the base: {matched.description}",
    )
    lacking = lacking_parts(adapter.config, adapter.parts, shapes)
    fitted = settled_experts(fitted, shapes, version, where)
    if not is_of_pipeline(adapter.form):  # no flag of theirs says a layout for all modules
        fitted = _squares(fitted, shapes)
    fitted |= _biases(fitted, shapes)
    names = {target: name for name, target in matched.names.items() if name in adapter.parts}
    left_out = (*adapter.left_out, *lacking)
    parts = dict(sorted(fitted.items()))
    return replace(adapter, parts=parts, notes=notes, names=names, unfit=unfit, left_out=left_out)


def _tied_head(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[str], list[Problem]]:
    """Return the parts of names that the base ties to its embeddings, and why they cannot be."""
    heads = {name: head[1] for name in adapter.parts if (head := _HEAD.search(name))}
    is_one = bool(adapter.config.get("ensure_weight_tying"))  # then PEFT trains one update for both names
    if is_one and any(_SHARED.search(name) for name in adapter.parts):
        stacks = {name: table[1] for name in adapter.parts if (table := _OF_STACK.search(name))}
        apart = [name for name in stacks if not isinstance(adapter.parts[name], Replace | Rows)]
        if apart:  # but it ties factors of a head alone
            what = f"has factors of {few(apart)}, which PEFT trains apart from those of their one table"
            return {*heads, *stacks}, [Problem(what, str(adapter.path), _ONE_TABLE)]
        heads |= stacks
    tied = {name for name, head in heads.items() if not any(other.endswith(head) for other in shapes)}
    if not tied:
        return set(), []
    if is_one:
        return tied, []
    what = f"changes {min(tied)} by itself, but the base has no such tensor: it is tied to the embeddings"
    return tied, [Problem(what, str(adapter.path), _UNTIE)]


def _rest(problems: list[Problem], where: str) -> list[Problem]:
    return [Problem(f"and {len(problems)} more of this kind", where)] if problems else []


def _matched(
    parts: Mapping[str, Part], available: Sequence[str], where: str, problems: list[Problem]
) -> NameMatch:
    """Return the base's names of all parts; raise `RequestError` with the other problems, too."""
    try:
        return match_names(list(parts), available, where)
    except RequestError:
        dense = [name for name, part in parts.items() if not isinstance(part, LowRankPart)]
        new = {name for name in dense if not has_match(name, available)}
        heads = {name: part for name, part in parts.items() if name in new and isinstance(part, Replace)}
        biases = [name for name in new if isinstance(parts[name], Add) and name.endswith(".bias")]
        experts = _of_packed_experts(parts, available)
    if heads:
        rows = max(part.entry.shape[:1] for part in heads.values())
        what = f"has a head of its own, which the base has not: {few(sorted(heads))}"
        hint = (
            f"give a base with such a head (AutoModelFor….from_pretrained(base, num_labels={rows[0]}), "
            "saved), or keep a head for each task with merge_method: mass"
        )
        problems.append(Problem(what, where, hint))
    if biases:
        what = f"adds to biases (lora_bias, diff_b) that the base does not have: {few(sorted(biases))}"
        hint = (
            "no checkpoint of this base can hold them: give it with biases of zero (as attention_bias: true "
            "in the configuration makes them), or train without them"
        )
        problems.append(Problem(what, where, hint))
    if experts:
        what = f"has updates of single experts, which the base packs in one tensor: {few(sorted(experts))}"
        hint = (
            "give the base with each expert by itself, as save_pretrained of transformers writes it "
            "(AutoModelFor….from_pretrained(base).save_pretrained(folder))"
        )
        problems.append(Problem(what, where, hint))
    try:
        rest = [name for name in parts if name not in new and name not in experts]
        matched = match_names(rest, available, where)
    except RequestError as error:
        problems.extend(error.problems)
    if problems:
        raise RequestError(problems)
    return matched


def _of_packed_experts(parts: Mapping[str, Part], available: Sequence[str]) -> set[str]:
    """Return the parts of single experts, where the base has tensors of all experts of a layer."""
    single = {name for name in parts if _EXPERT.search(name)}
    packs = any(_PACKED.search(name) for name in available)
    return single if packs and single and not has_match(min(single), available) else set()


def _shape(part: Part) -> tuple[int, ...]:
    """Return the shape of the parameter that a part is of, as far as it tells."""
    if isinstance(part, LowRankPart):
        return part.stored
    if isinstance(part, Rows):
        if part.table is not None:
            return part.table.shape
        return (max(part.indices, default=0) + 1, *part.entry.shape[1:])
    if isinstance(part, StackedRows):
        return part.shape
    if isinstance(part, ComputedUpdate | Transformed) and part.copy is not None:
        return part.copy.shape
    return part.matrix if isinstance(part, ComputedUpdate) else part.entry.shape


def _hint(name: str, part: Part, shape: tuple[int, ...]) -> str:
    own = _shape(part)
    differs = [a != b for a, b in zip(own, shape, strict=False)]
    if len(own) != len(shape) or sum(differs) != 1:
        return "give the base that it was trained on"
    if len(shape) > 2 and differs[1] and own[1] % max(1, shape[1]) == 0:
        return "the base's convolution is in groups, where such an update has no place: train without it"
    if differs[0] and _TABLE.search(name):
        leave = "or set rules: {shape: base, vocabulary: by-position} to leave the adapter's rows out"
        if not _is_saved(part):  # a base that is resized anew has other rows for the new tokens
            return f"give the base of {own[0]} rows that it was trained on, saved before training, {leave}"
        return (
            "it was trained with another vocabulary: merge rows by token (tokenizer_source: union, into a "
            "checkpoint, with its tokenizer in its folder), "
            f"give a base with {own[0]} rows (resize_token_embeddings({own[0]}), saved with the adapter's "
            f"tokenizer), {leave}"
        )
    return "was it trained on a base with another vocabulary, or of another size? Give that base"


def _is_resized(name: str, part: Part, shape: tuple[int, ...]) -> bool:
    """Return whether a part is a table that was saved whole, with rows for another vocabulary."""
    return _is_saved(part) and bool(_TABLE.search(name)) and _shape(part)[1:] == shape[1:]


def _is_saved(part: Part) -> bool:
    """Return whether a part tells all values of its parameter, without those of the base."""
    if isinstance(part, LowRankPart):
        return part.copy is not None and part.copy.shape == part.stored
    if isinstance(part, ComputedUpdate | Transformed):
        return part.copy is not None
    return isinstance(part, Replace) or (isinstance(part, Rows) and part.table is not None)


def _settled(part: Part, shape: tuple[int, ...], *, either_layout: bool) -> _Settled:
    """Return the part in the layout of its parameter; with `either_layout` it may be stored transposed."""
    if isinstance(part, Rows):
        if part.table is not None and part.table.shape != shape:
            return _Settled(part, f"has the shape {list(part.table.shape)}")
        last = max(part.indices, default=0)
        fits = len(shape) == 2 and part.entry.shape[1] == shape[1] and last < shape[0]
        return _Settled(part, "" if fits else f"has new values for rows up to {last}")
    if isinstance(part, PackedExperts):
        return _Settled(
            part, "" if part.stored == shape else f"is an update of the shape {list(part.stored)}"
        )
    if isinstance(part, ComputedUpdate | Transformed):
        of = shape if part.copy is None else part.copy.shape  # which may be that of another vocabulary
        fitted = part.fitted(of, either_layout=either_layout)
        if fitted is None:
            return _Settled(part, _misfit(part))
        return _Settled(fitted, "" if of == shape else f"has the shape {list(of)}")
    if isinstance(part, SharedFactors):
        sized = part.sized(shape, either_layout=either_layout)
        return _Settled(part, f"is an update of {part.size[0]} outputs") if sized is None else _Settled(sized)
    if isinstance(part, StackedRows):
        return _Settled(part, "" if part.shape == shape else f"has the shape {list(part.shape)}")
    if not isinstance(part, LowRankPart):
        return _Settled(part, "" if part.entry.shape == shape else f"has the shape {list(part.entry.shape)}")
    if part.between is not None and len(shape) > 2:  # AdaLoRA's factors of a convolution are matrices
        part = replace(part, folded=shape[2:])
    # rows of packed experts were cut out of a parameter whose layout was settled before
    layouts = [part.transposed, not part.transposed] if either_layout and part.expert is None else None
    for transposed in layouts or [part.transposed]:
        candidate = replace(part, transposed=transposed)
        if _fits(candidate, shape):
            # of a square parameter with experts the shape cannot tell the layout: `settled_experts` does
            return _Settled(replace(candidate, settled=not part.experts or shape[-1] != shape[-2]))
    return _Settled(part, f"is an update of the shape {list(part.stored)}")


def _misfit(part: ComputedUpdate | Transformed) -> str:
    if isinstance(part, Transformed):
        return f"is multiplied by a tensor {list(part.entry.shape)} ({part.kind})"
    return f"is an update of the shape {list(part.matrix)}" if any(part.matrix) else f"has {part.kind}"


def _fits(part: LowRankPart, shape: tuple[int, ...]) -> bool:
    """Return whether an update has a parameter's shape, but for a leading 1 or a kernel of 1."""
    single = part.experts == 0 and len(shape) == 3 and shape == (1, *part.stored)
    return part.stored == shape or single or _same_map(part.stored, shape)


def _biases(parts: Mapping[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Return what (IA)³ and RoAd do to the biases beside weights whose outputs they change."""
    found: dict[str, Part] = {}
    for name, part in parts.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        if not isinstance(part, Transformed) or not name.endswith(".weight") or bias not in shapes:
            continue
        own, saved = part.of_bias(), parts.get(bias)
        fitted = own and own.fitted(shapes[bias], either_layout=False)
        if fitted:
            found[bias] = replace(fitted, copy=saved.entry if isinstance(saved, Replace) else None)
    return found


def _squares(parts: dict[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Return the parts whose shape does not tell the layout in that of the base's matrices of that layer.

    The adapter has one flag for all modules, which is wrong for some if it has both kinds. The bias of a
    matrix tells which side of it are the outputs, and those of others of its layer; where no bias does, the
    adapter's own matrices of that layer that are not square.
    """
    votes: dict[tuple[str, int] | None, set[bool]] = {}
    for name, shape in shapes.items():
        if (vote := _vote(name, shape, shapes)) is not None:
            votes.setdefault(layer_of(name), set()).add(vote)
    sizes = {name: size for name, part in parts.items() if (size := _size(part, shapes[name]))}
    linear = {name: part for name, part in parts.items() if name in sizes and isinstance(part, _WithLayout)}
    own_votes: dict[tuple[str, int] | None, set[bool]] = {}
    for name, part in linear.items():
        if not _fits_either_way(part, sizes[name]):
            own_votes.setdefault(layer_of(name), set()).add(part.transposed)
    for name, part in linear.items():
        vote = _vote(name, sizes[name], shapes)
        layouts = votes.get(layer_of(name)) or own_votes.get(layer_of(name), set())
        layouts = layouts if vote is None else {vote}
        if _fits_either_way(part, sizes[name]) and len(layouts) == 1:
            parts[name] = _in_layout(part, sizes[name], transposed=layouts == {True})
    return parts


def _vote(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Return whether a matrix is stored as [inputs, outputs], as its bias tells; None where none does."""
    bias = shapes.get(f"{name.removesuffix('.weight')}.bias")
    is_told = len(shape) == 2 and shape[0] != shape[1] and bias in ((shape[0],), (shape[1],))
    return bias == (shape[1],) if is_told else None


def _fits_either_way(part: _WithLayout, shape: tuple[int, ...]) -> bool:
    """Return whether a part is the same size for a parameter that is stored transposed."""
    if isinstance(part, SizedUpdate):
        return part.of_conv1d and part.takes(*shape) and part.takes(*reversed(shape))
    return len(set(shape)) == 1


def _in_layout(part: _WithLayout, shape: tuple[int, ...], *, transposed: bool) -> Part:
    if isinstance(part, SizedUpdate):
        size = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
        return replace(part, transposed=transposed, size=size)
    return replace(part, transposed=transposed)


def _size(part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size of a linear map that may be stored transposed; empty for other parts."""
    if isinstance(part, LowRankPart):
        return part.stored if part.kind == "linear" and not (part.experts or part.kernel) else ()
    return shape if isinstance(part, _WithLayout) and len(shape) == 2 else ()


def _same_map(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether one is a linear map and the other the same map as a convolution with a kernel of 1."""
    return {len(stored), len(shape)} == {2, 4} and (*stored, 1, 1)[:4] == (*shape, 1, 1)[:4]
