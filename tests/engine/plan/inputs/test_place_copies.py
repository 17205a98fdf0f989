"""Models with a tensor under each name that the output has."""

from __future__ import annotations

from engine.plan.helpers_plan import entry, low_rank, model
from submerge.engine.plan.inputs._named_values import NamedValue
from submerge.engine.plan.inputs._place_copies import CopyPlacer
from submerge.engine.plan.inputs._tied_names import TiedNames
from submerge.store import Checkpoint

EMBEDDING, HEAD = "embed.weight", "head.weight"


def group(**values: dict[str, NamedValue]) -> TiedNames:
    """Return the names of embedding and head; `values` are those of models 0 and 1."""
    return TiedNames((EMBEDDING, HEAD), frozenset(), {int(k[1:]): v for k, v in values.items()})


def value(of: Checkpoint, stored: str, key: object = "one", **more: object) -> NamedValue:
    return NamedValue(of.tensors[stored], stored, key, **more)  # type: ignore[arg-type]


def test_a_name_that_is_not_stored_is_read_from_the_tensor_that_it_is_tied_to() -> None:
    tied, untied = model("tied", entry(EMBEDDING)), model("untied", entry(EMBEDDING), entry(HEAD))
    both = value(tied, EMBEDDING)
    names = group(
        m0={EMBEDDING: both, HEAD: both},
        m1={EMBEDDING: value(untied, EMBEDDING), HEAD: value(untied, HEAD, key="other")},
    )
    placer = CopyPlacer({0: tied, 1: untied})
    placer.place(names, [EMBEDDING, HEAD])
    assert list(placer.models[0].tensors) == [EMBEDDING, HEAD]
    assert placer.models[0].aliases == {HEAD: EMBEDDING}
    assert placer.models[0].tensors[HEAD].name == HEAD
    assert placer.models[1].tensors == untied.tensors


def test_one_entry_under_another_name_stays_one_object() -> None:
    """By that a model under an adapter is known to be the base."""
    base = model("base", entry(EMBEDDING))
    adapted = model("adapted", *base.tensors.values(), parts={})
    both = value(base, EMBEDDING)
    placer = CopyPlacer({0: base, 1: adapted})
    placer.place(group(m0={EMBEDDING: both, HEAD: both}, m1={EMBEDDING: both, HEAD: both}), [EMBEDDING, HEAD])
    assert placer.models[0].tensors[HEAD] is placer.models[1].tensors[HEAD]


def test_a_copy_that_says_nothing_new_is_taken_away() -> None:
    stored_twice = model("twice", entry(EMBEDDING), entry(HEAD))
    names = group(m0={name: value(stored_twice, name) for name in (EMBEDDING, HEAD)})
    placer = CopyPlacer({0: stored_twice})
    placer.place(names, [EMBEDDING])
    assert list(placer.models[0].tensors) == [EMBEDDING]


def test_a_part_of_an_adapter_goes_with_the_value() -> None:
    part = low_rank()
    adapted = model("adapted", entry(EMBEDDING), parts={EMBEDDING: part})
    both = value(adapted, EMBEDDING, part=part)
    placer = CopyPlacer({0: adapted})
    placer.place(group(m0={EMBEDDING: both, HEAD: both}), [EMBEDDING, HEAD])
    adapter = placer.models[0].adapter
    assert adapter is not None
    assert adapter.parts == {EMBEDDING: part, HEAD: part}
