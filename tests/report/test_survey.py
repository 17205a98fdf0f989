"""The survey of a file's inputs: each input's task is the one that it is given alone, in the file's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _mass_tasks import make, words
from _models import quiet_transformers
from submerge.calibrate import Item
from submerge.report import Survey, survey

pytest.importorskip("transformers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tasks, with a tokenizer."""
    root = tmp_path_factory.mktemp("survey")
    bert = make("bert", root, 2)
    vocabulary = [*SPECIAL, *(f"w{i}" for i in range(5, 64))]
    tokenizer = quiet_transformers().BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(root / "base")
    return bert.merged("served")


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_pairs_among_texts_keep_their_places(served: Path, tmp_path: Path) -> None:
    texts = [" ".join(f"w{i}" for i in row) for t in range(2) for row in words(t, 3).tolist()]
    rows: list[dict[str, str]] = [{"text": text, "task": f"task{n // 3}"} for n, text in enumerate(texts)]
    rows[1]["text_pair"] = "w7 w8"
    found = survey(served, written(tmp_path / "all.jsonl", rows), batch=2)
    assert [item.text for item in found.items] == texts
    assert found.names == ("task0", "task1")
    assert found.labelled
    tokenizer = quiet_transformers().AutoTokenizer.from_pretrained(served)
    model: Any = submerge.load(served, features=True)
    for number, item in enumerate(found.items):
        inputs = tokenizer(item.text, item.text_pair or None, return_tensors="pt")
        alone = model.route(**inputs, details=True)
        assert found.tasks[number] == alone.tasks[0]
        assert found.selected[number] == alone.selected[0]
        assert torch.allclose(found.coefficients[number], alone.coefficients[0], atol=1e-3)
        assert found.sites == alone.sites
    assert found.scores.shape == (len(found.sites), 6, 2)


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    vit = make("vit", tmp_path, 2)
    size = {"height": 16, "width": 16}
    quiet_transformers().ViTImageProcessor(size=size).save_pretrained(tmp_path / "base")
    (tmp_path / "images").mkdir()
    for number in range(3):
        image.new("RGB", (20, 24), 40 * number).save(tmp_path / "images" / f"{number}.png")
    found = survey(vit.merged("served"), tmp_path / "images", batch=2)
    assert [item.image.name for item in found.items if isinstance(item.image, Path)] == [
        "0.png",
        "1.png",
        "2.png",
    ]
    assert len(found.tasks) == 3
    assert not found.labelled


def test_what_it_says_of_inputs() -> None:
    names, own, chosen = ("a", "b"), ("a", "a", "b"), ("a", "b", "b")
    items = tuple(Item(text=str(number), task=task) for number, task in enumerate(own))
    shares = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    scores = torch.tensor([[[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]])
    found = Survey(names, items, chosen, tuple((task,) for task in chosen), shares, ("q",), scores)
    assert found.confusion == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 1}}
    assert found.accuracy == pytest.approx(2 / 3)
    data = found.to_dict()
    assert data["inputs"][1] == {
        "input": "1",
        "task": "b",
        "selected": ["b"],
        "coefficients": {"a": 0.5, "b": 0.5},
        "told": "a",
    }
    assert data["chosen"] == {"a": 1, "b": 2}
    assert data["sites"] == {"q": {"a": pytest.approx(1 / 3), "b": pytest.approx(-1 / 3)}}
    assert list(data) == ["tasks", "inputs", "chosen", "sites", "accuracy", "confusion"]


def test_inputs_of_unknown_tasks() -> None:
    items = (Item(text="x", task="a"), Item(text="y"))
    found = Survey(("a",), items, ("a", "a"), (("a",),) * 2, torch.ones(2, 1), (), torch.zeros(0, 2, 1))
    assert not found.labelled
    data = found.to_dict()
    assert data["sites"] == {}
    assert "accuracy" not in data
    assert "told" not in data["inputs"][1]


def test_a_task_that_the_folder_lacks(served: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "wrong.jsonl", [{"text": "w7", "task": "nobody"}])
    with pytest.raises(submerge.RequestError, match="unknown tasks: nobody — there are task0, task1"):
        survey(served, data)
