"""A base in float64, three tasks' adapters that PEFT made of it, and inputs of each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from _adapters import FIRST, SECOND, peft_model
from _models import quiet_transformers
from store.helpers_adapter import MODELS, copied

if TYPE_CHECKING:
    from continual.helpers_images import ImageTasks

pytest.importorskip("transformers")
pytest.importorskip("peft")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TASKS = {"law": FIRST, "chess": SECOND, "poems": {**FIRST, "r": 2}}


@dataclass(frozen=True)
class Tasks:
    """A folder with `base`, and for each task its adapter and `NAME.jsonl`."""

    root: Path

    @property
    def base(self) -> str:
        return str(self.root / "base")

    def of(self, name: str) -> tuple[str, str, str]:
        """Return what `Continual.add` takes of a task: its name, its adapter, its data."""
        return name, str(self.root / name), str(self.root / f"{name}.jsonl")

    def option(self, name: str) -> list[str]:
        """Return the same as options of a command."""
        _, model, data = self.of(name)
        return ["--task", name, "--model", model, "--data", data]


def save_quietly(model: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    root = tmp_path_factory.mktemp("tasks")
    t = quiet_transformers()
    torch.manual_seed(0)
    model = MODELS["llama"](t)
    state = copied(model)
    model.double().save_pretrained(root / "base")
    words = [*SPECIAL, *(f"w{i}" for i in range(5, 64))]
    t.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(root / "base")
    for seed, (name, options) in enumerate(TASKS.items()):
        save_quietly(peft_model("llama", state, seed + 1, **options), root / name)
        texts = [
            " ".join(f"w{5 + (7 * seed + 3 * row + (2 + row) * i) % 59}" for i in range(4 + row % 3))
            for row in range(12)
        ]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return Tasks(root)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageTasks:
    from continual.helpers_images import make_image_tasks

    return make_image_tasks(tmp_path_factory.mktemp("images"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "state"
