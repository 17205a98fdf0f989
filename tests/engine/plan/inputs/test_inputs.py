"""The models of a merge by the parts that they take."""

from __future__ import annotations

import pytest

from engine.plan.helpers_plan import entry, inputs_of, model, recipe_of
from submerge.engine.plan import Inputs

BASE, ONE, TWO = (model(label, entry("w")) for label in ("base", "one", "two"))


def test_the_base_is_the_reference_and_no_participant() -> None:
    inputs = inputs_of(recipe_of(), BASE, ONE, TWO)
    assert (inputs.base, inputs.reference, inputs.participants) == (0, 0, (1, 2))
    assert inputs.reference_model is BASE
    assert [inputs.role(i) for i in range(3)] == ["base", "merged", "merged"]
    assert inputs.involved == {0: BASE, 1: ONE, 2: TWO}


def test_without_a_base_the_first_model_is_the_reference() -> None:
    inputs = inputs_of(recipe_of("linear", base=False), ONE, TWO)
    assert (inputs.base, inputs.reference, inputs.participants) == (None, 0, (0, 1))
    assert [inputs.role(i) for i in range(2)] == ["merged", "merged"]


def test_a_base_that_is_one_of_the_models() -> None:
    entries = [{"model": name} for name in ("base", "one")]
    inputs = inputs_of(recipe_of("linear", models=entries), BASE, ONE)
    assert inputs.participants == (0, 1)
    assert inputs.role(0) == "base and merged"
    assert list(inputs.involved) == [0, 1]


def test_a_base_of_names_alone_takes_part_with_its_files() -> None:
    """What adapters alone have in common comes first, under an empty spec that no recipe names."""
    recipe = recipe_of("cat", base=False, output={"as": "adapter"})
    inputs = Inputs.of(recipe, {"": BASE, "one": ONE, "two": TWO})
    assert (inputs.base, inputs.reference, inputs.participants) == (None, 0, (1, 2))
    assert inputs.role(0) == "files only"


def test_a_model_that_is_merged_twice_is_there_once() -> None:
    entries = [{"model": name} for name in ("one", "two", "one")]
    inputs = inputs_of(recipe_of(models=entries), BASE, ONE, TWO)
    assert inputs.participants == (1, 2, 1)
    assert list(inputs.involved) == [0, 1, 2]


@pytest.mark.parametrize(
    ("wanted", "label", "named"), [(None, "base", False), ("base", "base", False), ("two", "two", True)]
)
def test_where_the_tokenizer_comes_from(wanted: str | None, label: str, named: bool) -> None:
    keys = {} if wanted is None else {"tokenizer_source": wanted}
    source = inputs_of(recipe_of(**keys), BASE, ONE, TWO).tokenizer
    assert source is not None
    assert (source.label, source.model.label, source.named) == (label, label, named)


def test_an_adapter_has_no_tokenizer() -> None:
    assert inputs_of(recipe_of("cat", output={"as": "adapter"}), BASE, ONE, TWO).tokenizer is None


def test_changed_models_keep_their_parts() -> None:
    inputs = inputs_of(recipe_of(), BASE, ONE, TWO)
    changed = inputs.of_models([TWO, ONE, BASE])
    assert changed.reference_model is TWO
    assert (changed.specs, changed.participants) == (inputs.specs, inputs.participants)
