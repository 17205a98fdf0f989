"""The model card of a merge."""

from __future__ import annotations

from typing import Any

import yaml

from submerge.engine.output._card import model_card


def card(**changes: Any) -> tuple[dict[str, Any], str]:
    """Return the front matter and the text of a card."""
    given: dict[str, Any] = {
        "name": "merged",
        "method": "TIES-Merging",
        "source": "a paper",
        "models": ["org/chat@main", "code"],
        "base": "org/base",
        "fetched": ["org/base", "org/chat@main"],
        "recipe": "merge_method: ties\n",
        "adapter": False,
        "version": "1.2",
    }
    _, front, text = model_card(**given | changes).split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_names_models_of_the_hub_alone() -> None:
    front, text = card()
    assert front == {
        "base_model": ["org/base", "org/chat"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "submerge"],
    }
    assert "* `org/base` (base)\n* `org/chat@main`\n* `code`\n" in text
    assert "```yaml\nmerge_method: ties\n```" in text


def test_local_models_alone_have_no_relation() -> None:
    front, text = card(fetched=[], base=None)
    assert front == {"library_name": "transformers", "tags": ["merge", "submerge"]}
    assert "(base)" not in text


def test_an_adapter_is_one_of_its_base() -> None:
    front, _ = card(adapter=True)
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")
    assert front["tags"] == ["merge", "submerge", "lora"]


def test_the_tasks_of_a_gate() -> None:
    _, text = card(tasks=["law", "chess"])
    assert "It serves 2 tasks as one model: `law`, `chess`." in text
    assert "model = submerge.load('merged')" in text
    assert "submerge.load" not in card()[1]
