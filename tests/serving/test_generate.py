"""Generation routes once, on the prompt."""

from __future__ import annotations

import pytest
import torch

import submerge
from _mass_tasks import Served, make, one

pytest.importorskip("transformers")


def test_generation_routes_once_on_the_prompt(llama: Served) -> None:
    model = submerge.load(llama.merged("default"))
    inputs, labels = llama.mixed()
    inputs = {"input_ids": inputs["input_ids"]}
    names = [f"task{t}" for t in labels]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(**inputs, task=names, **options)
    for row in range(len(labels)):
        alone = model.generate(**one(inputs, row), task=names[row], **options)
        assert whole[row, : alone.shape[1]].tolist() == alone[0].tolist()
    routed_once = model.generate(**inputs, **options)
    tasks = model.route(**inputs).tasks
    assert torch.equal(routed_once, model.generate(**inputs, task=tasks, **options))
    beams = model.generate(inputs["input_ids"], task=names, num_beams=2, num_return_sequences=2, **options)
    assert beams.shape[0] == 2 * len(labels)
    for row in range(len(labels)):
        alone = model.generate(
            **one(inputs, row), task=names[row], num_beams=2, num_return_sequences=2, **options
        )
        assert beams[2 * row : 2 * row + 2, : alone.shape[1]].tolist() == alone.tolist()


def test_encoder_decoders_generate(tmp_path_factory: pytest.TempPathFactory) -> None:
    t5 = make("t5", tmp_path_factory.mktemp("t5"))
    model = submerge.load(t5.merged("default"))
    inputs, labels = t5.mixed(each=1)
    names = [f"task{t}" for t in labels]
    options = {"max_new_tokens": 5, "do_sample": False}
    whole = model.generate(**inputs, task=names, **options)
    for row in range(len(labels)):
        alone = model.generate(**one(inputs, row), task=names[row], **options)
        assert whole[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_a_call_within_a_generate_runs_by_its_tasks_unless_it_names_others(llama: Served) -> None:
    """As of a logits processor, which may ask the model something else in between."""
    model = submerge.load(llama.merged("default"))
    ids = llama.mixed()[0]["input_ids"]
    wanted = {task: model(input_ids=ids, task=task).logits for task in ("task0", "task1")}
    assert not torch.allclose(wanted["task0"], wanted["task1"], atol=1e-3)
    asked: list[dict[str, torch.Tensor]] = []

    def asks(so_far: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        prompt = so_far[:, : ids.shape[1]]
        named = model(input_ids=prompt, task="task1")
        assert named.tasks == ["task1"] * len(ids)
        asked.append({"task0": model(input_ids=prompt).logits, "task1": named.logits})
        return scores

    options = {"task": "task0", "max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    answer = model.generate(input_ids=ids, logits_processor=[asks], **options)
    assert len(asked) == 2
    for found in asked:
        for task, logits in found.items():
            torch.testing.assert_close(logits, wanted[task], rtol=1e-4, atol=1e-4)
    assert torch.equal(answer, model.generate(input_ids=ids, **options))
