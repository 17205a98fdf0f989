"""What merges with mixed projectors answer: as models that are put together by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, quiet_transformers
from _projectors import PROJECTOR, TASKS, LlavaTasks, make_llava_tasks
from submerge.deferred import quietly

pytest.importorskip("transformers")
pytest.importorskip("peft")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LlavaTasks:
    tasks = make_llava_tasks(tmp_path_factory.mktemp("served"))
    tasks.save(tasks.adapted("blue-lora"), "blue-tuned")
    return tasks


@pytest.fixture(scope="module", params=["adapters", "checkpoints", "bfloat16"])
def merged(made: LlavaTasks, request: pytest.FixtureRequest) -> Path:
    """A merge of two adapters by `many`, or of an adapter and a checkpoint by task arithmetic."""
    recipe = made.recipe("many")
    if request.param == "checkpoints":
        parameters = {"weight": 0.5}
        recipe = made.recipe(
            "task_arithmetic", "red", "blue:blue-tuned", projectors="mixed", parameters=parameters
        )
    if request.param == "bfloat16":
        recipe["dtype"] = "bfloat16"
    return submerge.merge(recipe, made.root / request.param, settings=ROOM).out


def load(folder: Path) -> Any:
    with quietly(quiet_transformers().logging), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return submerge.load(folder).eval()


def by_hand(made: LlavaTasks, merged: Path, task: str) -> Any:
    """Return the merged language model behind a task's own projector."""
    model = made.load(merged.name)
    own = made.adapted(f"{task}-lora").state_dict()
    own = {name.removeprefix("model."): x.to(model.dtype) for name, x in own.items() if PROJECTOR in name}
    assert not model.model.load_state_dict(own, strict=False).unexpected_keys
    return model


@torch.no_grad()
def test_a_named_task_has_its_projector(made: LlavaTasks, merged: Path) -> None:
    served = load(merged)
    for task in TASKS:
        inputs = made.inputs(task, 0, 3, 4)
        plain = by_hand(made, merged, task)
        torch.testing.assert_close(served(**inputs, task=task).logits, plain(**inputs).logits, **CLOSE)
        answers = [m.generate(**inputs, **more, max_new_tokens=3, do_sample=False, eos_token_id=None)
                   for m, more in ((served, {"task": task}), (plain, {}))]  # fmt: skip
        assert torch.equal(*answers)


@torch.no_grad()
def test_images_find_their_projectors(made: LlavaTasks, merged: Path) -> None:
    served = load(merged)
    for task in TASKS:
        inputs = made.inputs(task, *range(4))
        out = served(**inputs)
        assert out.tasks == [task] * 4
        own = out.shares[:, TASKS.index(task)]
        assert (own > 0.9).all()
        near = by_hand(made, merged, task)(**inputs).logits
        far = by_hand(made, merged, TASKS[1 - TASKS.index(task)])(**inputs).logits
        assert (out.logits - near).norm() < 0.5 * (out.logits - far).norm()


def test_a_copy_is_served_alike(made: LlavaTasks, merged: Path, tmp_path: Path) -> None:
    served = load(merged)
    with quietly(quiet_transformers().logging):
        served.save_pretrained(tmp_path / "copy")
    again, inputs = load(tmp_path / "copy"), made.inputs("red", 0, 1)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, served(**inputs).logits)
