"""Moments of a task on images: the language model's inputs have the image features in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from _projectors import LlavaTasks, make_llava_tasks
from submerge.calibrate import task_moments
from submerge.store import open_adapter, open_checkpoint

pytest.importorskip("transformers")
pytest.importorskip("peft")
MAPS = [
    f"layers.{layer}.{name}_proj" for layer in (0, 1) for name in ("self_attn.q", "self_attn.o", "mlp.down")
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LlavaTasks:
    tasks = make_llava_tasks(tmp_path_factory.mktemp("moments"))
    tasks.save(tasks.adapted("blue-lora"), "blue-tuned")
    return tasks


def inputs_by_hooks(model: Any, made: LlavaTasks, task: str) -> dict[str, torch.Tensor]:
    """Return the rows of each map's inputs, while the task's data runs through its own model row by row."""
    rows: dict[str, list[torch.Tensor]] = {}
    language = model.model.language_model
    modules = {name: language.get_submodule(name) for name in MAPS}
    for name, module in modules.items():
        module.register_forward_pre_hook(
            lambda _, args, name=name: rows.setdefault(name, []).append(args[0][0])
        )
    for place in range(6):
        with torch.no_grad():
            model(**made.inputs(task, place))
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


@pytest.mark.parametrize(("task", "folder"), [("red", "red-lora"), ("blue", "blue-tuned")])
def test_moments_are_those_of_the_tasks_own_projector_and_language_model(
    made: LlavaTasks, task: str, folder: str
) -> None:
    adapted = folder.endswith("lora")
    base = open_checkpoint(str(made.path("base")))
    names = {f"language_model.model.{name}": name for name in MAPS}
    moments = task_moments(
        base if adapted else open_checkpoint(str(made.path(folder))),
        open_adapter(str(made.path(folder))) if adapted else None,
        str(made.path(f"{task}.jsonl")),
        base,
        [f"{full}.weight" for full in names],
        statistics="full",
        batch_size=4,
        max_length=64,
    ).moments
    assert set(moments) == set(names)
    seen = inputs_by_hooks(made.adapted(f"{task}-lora"), made, task)
    for full, name in names.items():
        x = seen[name]
        assert moments[full].count == len(x)
        found = moments[full].times(torch.eye(x.shape[1])).double()
        torch.testing.assert_close(found, x.T @ x, rtol=1e-4, atol=1e-4)


def test_images_matter(made: LlavaTasks) -> None:
    """Without the features of their images the questions of both tasks would be the same inputs."""
    red, blue = (inputs_by_hooks(made.adapted("red-lora"), made, task) for task in ("red", "blue"))
    assert red[MAPS[0]].shape == blue[MAPS[0]].shape
    assert not torch.allclose(red[MAPS[0]], blue[MAPS[0]], atol=1e-3)
