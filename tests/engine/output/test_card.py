"""The model card: what stands in front of it for the Hub, and what it says."""

from typing import Any

import yaml

from submerge.engine.output._card import model_card

FIELDS: dict[str, Any] = {
    "name": "merged",
    "method": "TIES",
    "source": "a paper",
    "models": ["org/chat@v1", "./code", "org/chat@v1"],
    "base": "org/base",
    "fetched": {"org/base", "org/chat@v1"},
    "recipe": "merge_method: ties\n",
    "adapter": False,
    "version": "9.9",
}


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_only_models_of_the_hub_stand_in_front() -> None:
    text = model_card(**FIELDS)
    assert front(text) == {
        "base_model": ["org/base", "org/chat"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "submerge"],
    }
    assert "* `org/base` (base)\n* `org/chat@v1`\n* `./code`\n\n" in text
    assert "base_model" not in front(model_card(**FIELDS | {"fetched": ()}))


def test_an_adapter_is_one_of_peft() -> None:
    found = front(model_card(**FIELDS | {"adapter": True}))
    assert found["library_name"] == "peft"
    assert found["base_model_relation"] == "adapter"
    assert "lora" in found["tags"]


def test_the_recipe_stands_in_it() -> None:
    text = model_card(**FIELDS)
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == {"merge_method": "ties"}
    assert "by TIES (a paper)" in text
    assert "submerge.load" not in text


def test_tasks_of_a_gate_come_with_the_code_that_loads_them() -> None:
    usage = ("out = model(**inputs, shares={{task}: 1})",)
    text = model_card(**FIELDS | {"tasks": ("law", "chess"), "usage": usage})
    assert "serves 2 tasks as one model: `law`, `chess`" in text
    assert "`pipeline(model=…)`) loads one plain checkpoint, which knows no tasks" in text
    assert "submerge.load('merged')" in text
    assert "out = model(**inputs, shares={'law': 1})\n```" in text


APACHE = {"license": "apache-2.0"}
LLAMA = {"license": "other", "license_name": "llama3", "license_link": "https://example.org/llama"}


def test_a_licence_that_all_models_state_is_the_results() -> None:
    text = model_card(**FIELDS | {"licences": {"a": LLAMA, "b": dict(LLAMA)}})
    assert front(text).items() >= LLAMA.items()
    assert "Licences" not in text


def test_licences_that_differ_are_listed() -> None:
    for licences in ({"a": LLAMA, "b": APACHE, "c": {}}, {"a": APACHE, "c": {}}):
        text = model_card(**FIELDS | {"licences": licences})
        assert not [key for key in front(text) if key.startswith("license")]
        assert "* `c`: not stated\n" in text
    assert "* `a`: apache-2.0\n" in text
    assert "Licences" not in model_card(**FIELDS | {"licences": {"a": {}, "b": {}}})
