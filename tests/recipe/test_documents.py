"""Several recipes in one file: their names, their order, and what each needs of the others."""

from typing import Any

import pytest
import yaml

from submerge.errors import RequestError
from submerge.recipe import load_documents, load_mixture, load_recipe

LINEAR = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
MIXTURE = "base_model: base\ngate_mode: random\nexperts: [{source_model: a}, {source_model: b}]\n"
RESULT = "merge_method: slerp\nbase_model: both\nmodels: [both, org/second]\nparameters: {t: 0.5}\n"
BOTH = "name: both\nmerge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
SECOND = """\
name: org/second
merge_method: ties
base_model: base
models: [both+lora, c]
parameters: {weight: 1}
"""


def joined(*documents: str) -> str:
    return "---\n".join(documents)


def problems(text: str, **how: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        load_documents(text, **how)
    return [str(problem) for problem in caught.value.problems]


def test_each_document_comes_after_those_that_it_needs() -> None:
    documents = load_documents(joined(RESULT, SECOND, BOTH))
    assert [recipe.name for recipe in documents.recipes] == ["both", "org/second", ""]
    assert documents.uses == {"": ("both", "org/second"), "org/second": ("both",), "both": ()}
    assert documents.result is documents.recipes[-1]
    assert documents.needed == documents.recipes
    assert documents.warnings == ()
    assert documents.recipes[1].models[0].where == "recipe:9", "lines are those of the file"


def test_a_file_of_one_document_is_a_recipe_as_ever() -> None:
    for text in (BOTH, f"---\n{BOTH}---\n", f"{BOTH}...\n---\n# the end\n"):
        documents = load_documents(text)
        assert [recipe.name for recipe in documents.recipes] == ["both"]
        assert documents.result is documents.recipes[0]
    mapping = load_documents({"merge_method": "karcher", "models": ["a"]})
    assert mapping.recipes[0].models[0].model == "a"
    assert problems("\n") == ["recipe: the recipe is empty — start with 'merge_method: …'"]


def test_every_place_of_a_model_can_name_a_result() -> None:
    for place in (
        "base_model: both\nmodels: [a]",
        "base_model: base\nmodels: [both]",
        "base_model: base\nmodels: [{model: both}]",
        "base_model: base\nmodels: [{model: {path: both}}]",
        "base_model: base\nmodels: [{model: {model: {path: both}, lora: {path: x}}}]",
        "base_model: base\nmodels: [{model: a, lora: both}]",
    ):
        text = f"merge_method: task_arithmetic\n{place}\nparameters: {{weight: 1}}\n"
        assert load_documents(joined(BOTH, text)).uses[""] == ("both",), place


def test_documents_that_nobody_needs_are_named() -> None:
    documents = load_documents(joined(BOTH, SECOND, RESULT.replace("org/second", "c")))
    assert documents.unused == ("org/second",)
    assert documents.warnings == ("no document merges the result of 'org/second'",)
    assert [recipe.name for recipe in documents.needed] == ["both", ""]


def test_many_ways_to_one_document_are_walked_once() -> None:
    step = "name: l{0}\nmerge_method: karcher\nmodels: [{1}, {2}]\n---\n"
    text = "".join(
        step.format(f"{i}{side}", f"l{i - 1}a" if i else "x", f"l{i - 1}b" if i else "y")
        for i in range(40)
        for side in "ab"
    )
    documents = load_documents(f"{text}merge_method: karcher\nmodels: [l39a, l39b]\n")
    assert len(documents.needed) == 81


def test_where_all_have_names_all_are_wanted() -> None:
    documents = load_documents(joined(SECOND, BOTH))
    assert documents.result is None
    assert documents.unused == ()
    assert [recipe.name for recipe in documents.needed] == ["both", "org/second"]


def test_a_circle_is_refused_with_its_names() -> None:
    circle = BOTH.replace("[a, b]", "[a, org/second]")
    (problem,) = problems(joined(RESULT, SECOND, circle))
    assert problem.startswith("recipe:12: these documents need each other: both → org/second → both")
    (problem,) = problems(joined(RESULT, SECOND, BOTH.replace("[a, b]", "[both, b]")))
    assert "both → both" in problem


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ((BOTH, BOTH, RESULT), "recipe:6: a second document is called 'both'"),
        ((RESULT, BOTH, SECOND, RESULT), "a second document has no name — give every document but the last"),
        ((BOTH.replace("both", "../up"), RESULT), "recipe:1: no result can be called '../up'"),
        ((BOTH.replace("both", "/abs"), RESULT), "no result can be called '/abs'"),
        ((BOTH.replace("both", "a+b"), RESULT), "no result can be called 'a+b'"),
        ((BOTH.replace("both", "org"), SECOND), "no result can be called 'org'"),
        ((BOTH.replace("both", "7"), RESULT), "recipe:1: a name is text, not 7"),
    ],
)
def test_names_that_cannot_be(documents: tuple[str, ...], message: str) -> None:
    assert any(message in problem for problem in problems(joined(*documents)))


def test_problems_of_all_documents_come_together() -> None:
    found = problems(joined(RESULT.replace("0.5", "many"), BOTH + "zzz: 1\n", SECOND.replace("ties", "tise")))
    assert [problem.split(":")[1] for problem in found] == ["4", "10", "13"]
    found = problems(joined(RESULT.replace("0.5", "many"), BOTH + "zzz: 1\n", SECOND), mergekit=True)
    assert [problem.split(":")[1] for problem in found] == ["4"]
    assert problems(joined(BOTH, "a: [\n"))[0].startswith("recipe:7: this is not YAML")


def test_empty_documents_are_none_wherever_a_recipe_is_read() -> None:
    """A `---` at the end begins a document in which nothing stands."""
    for text in (f"{LINEAR}---\n", f"---\n---\n{LINEAR}...\n---\n~\n---\n# the end\n"):
        assert [entry.model for entry in load_recipe(text).models] == ["a", "b"]
    assert load_mixture(f"{MIXTURE}---\n").base == "base"


def test_what_cannot_be_read_in_a_later_document_is_told() -> None:
    """It was taken for an empty one."""
    text = f"{LINEAR}--- !mine x\n"
    assert any("YAML tag '!mine' is not allowed" in problem for problem in problems(text))
    with pytest.raises(RequestError, match="recipe:4: a second document starts here — a recipe is one"):
        load_recipe(text)


def test_the_output_of_the_command_line_is_that_of_the_result() -> None:
    result = "merge_method: ties\nbase_model: base\nmodels: [both]\nparameters: {weight: 1}\n"
    documents = load_documents(joined(BOTH, result), output={"as": "adapter"})
    assert [recipe.output.form for recipe in documents.recipes] == ["checkpoint", "adapter"]


def test_mergekit_sees_the_same_needs(tmp_path: Any) -> None:
    multi = pytest.importorskip("mergekit.scripts.multimerge")
    text = joined(
        RESULT.replace("[both, org/second]", "[{model: both}, {model: org/second}]"),
        BOTH.replace("[a, b]", "[{model: a}, {model: b}]"),
        SECOND.replace("[both+lora, c]", "[{model: both+lora}, {model: c}]"),
    )
    configs, needs = multi.load_config(text, str(tmp_path))
    documents = load_documents(text)
    assert {name or "": set(used) for name, used in needs.items()} == {
        name: set(used) for name, used in documents.uses.items()
    }
    assert len(configs) == len(list(yaml.safe_load_all(text)))
