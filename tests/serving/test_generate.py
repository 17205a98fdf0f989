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
