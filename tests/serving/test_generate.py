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
    sequences = model.generate(
        **inputs, task=names, prefix_allowed_tokens_fn=lambda row, _: [10 + row], **options
    )
    assert sequences[:, -1].tolist() == [10 + row for row in range(len(labels))]
    with pytest.warns(UserWarning, match="run one after another in T5.*: the output has no past_key_values"):
        found = model.generate(**inputs, task=names, return_dict_in_generate=True, **options)
    assert torch.equal(found.sequences, whole)


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


def test_what_goes_by_a_samples_number_is_told_the_callers(llama: Served) -> None:
    """A cache and a function of allowed tokens, though samples run in the order of their tasks."""
    model = submerge.load(llama.merged("default"))
    ids = llama.mixed()[0]["input_ids"][:4]
    names = ["task1", "task0", "task1", "task2"]
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "task": names}
    out = model.generate(input_ids=ids, return_dict_in_generate=True, **options)
    for row, name in enumerate(names):
        alone = model.generate(ids[row : row + 1], return_dict_in_generate=True, **options | {"task": name})
        keys = [each.past_key_values.layers[-1].keys for each in (out, alone)]
        torch.testing.assert_close(keys[0][row], keys[1][0], rtol=1e-4, atol=1e-4)
    longer = torch.cat([out.sequences, ids[:, :3]], dim=1)
    found = model.generate(longer, past_key_values=out.past_key_values, **options)
    assert torch.equal(found, model.generate(longer, **options))
    sequences = model.generate(ids, prefix_allowed_tokens_fn=lambda row, _: [20 + row], **options)
    assert sequences[:, -1].tolist() == [20, 21, 22, 23]


def test_a_model_drafts_for_itself_by_the_tasks_of_the_prompt(llama: Served) -> None:
    model = submerge.load(llama.merged("default"))
    ids = llama.mixed()[0]["input_ids"][:1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "task": "task1"}
    wanted = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **options), wanted)
    assert torch.equal(model.generate(ids, **options), wanted), "all layers run again"
