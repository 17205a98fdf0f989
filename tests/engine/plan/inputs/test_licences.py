"""What the cards of models say of their licences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import submerge
from _models import ROOM, state, write
from store.helpers_adapter import by_hand
from submerge.engine.plan.inputs import licence_warnings

CARD = "---\nlicense: {}\ntags: [chat]\n---\n# A model\n"


def made(root: Path, **cards: str) -> dict[str, object]:
    """Write models with cards, and return the recipe of their mean."""
    for name, card in cards.items():
        write(root / name, state(), {"model_type": "toy"})
        if card:
            (root / name / "README.md").write_text(card, newline="")
    models = [{"model": str(root / name)} for name in cards]
    return {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}


def front(folder: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def test_one_licence_goes_on(tmp_path: Path) -> None:
    recipe = made(tmp_path, a=CARD.format("mit"), b=CARD.format("mit").replace("\n", "\r\n"))
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert report.warnings == ()
    assert front(report.out)["license"] == "mit"


def test_licences_that_differ_are_told(tmp_path: Path) -> None:
    other = "---\nlicense: other\nlicense_name: gemma\n---\n"
    report = submerge.merge(
        made(tmp_path, a=CARD.format("mit"), b=other, c=""), tmp_path / "out", settings=ROOM
    )
    (warning,) = report.warnings
    assert warning.startswith(f"the models state different licences: mit ({tmp_path / 'a'}); gemma (")
    assert "license" not in front(report.out)
    assert f"* `{tmp_path / 'c'}`: not stated" in (report.out / "README.md").read_text()


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# no front",
        "---\nlicense: mit\n",
        "---\n: [\n---\n",
        "---\nlicense: [mit]\n---\n",
        "---\n- a\n---\n",
    ],
)
def test_cards_that_say_nothing(card: str, tmp_path: Path) -> None:
    plan = submerge.plan(made(tmp_path, a=card, b=CARD.format("mit")), ROOM)
    assert plan.licences == {str(tmp_path / "a"): {}, str(tmp_path / "b"): {"license": "mit"}}
    assert licence_warnings(plan.licences) == []


def test_an_adapter_and_its_base_count_both(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"q.weight": torch.zeros(3, 4)}, {"model_type": "toy"})
    adapter = by_hand(tmp_path / "adapter")
    for folder, licence in ((base, "mit"), (adapter, "cc-by-4.0")):
        (folder / "README.md").write_text(CARD.format(licence))
    on_base = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    found = submerge.plan(on_base, ROOM).licences
    assert found == {str(base): {"license": "mit"}, str(adapter): {"license": "cc-by-4.0"}}
    alone = {"merge_method": "cat", "models": [{"model": str(adapter)}], "output": {"as": "adapter"}}
    assert submerge.plan(alone, ROOM).licences == {str(adapter): {"license": "cc-by-4.0"}}
