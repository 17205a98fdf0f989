"""Composed models: exact copies of their specialists, each token with the parameters of its stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from serving.helpers_composed import (
    IMAGE,
    SOUND,
    Specialist,
    by_token,
    factors,
    lora,
    padded,
    prompt,
    prompt_embeddings,
    specialist,
    updated,
    values,
    write_composed,
)

pytest.importorskip("transformers")

KINDS = [("llava", "llama"), ("llava", "qwen2"), ("qwen2_audio", "qwen2"), ("voxtral", "llama"),
         ("next_video", "llama"), ("video_llava", "llama")]  # fmt: skip
HOW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def close(found: torch.Tensor, wanted: torch.Tensor, mask: Any = None) -> None:
    error = (found - wanted).abs()
    assert (error if mask is None else error[mask.bool()]).max() < 1e-4
    assert wanted.std() > 0.1, "a test of nothing"


def same_tokens(model: Any, other: Any, **inputs: Any) -> None:
    found, wanted = (m.generate(**inputs, **HOW) for m in (model, other))
    assert torch.equal(found, wanted)
    assert wanted[:, -HOW["max_new_tokens"] :].unique().numel() > 2, "a test of nothing"


@pytest.mark.parametrize(("kind", "lm"), KINDS)
@torch.no_grad()
def test_a_composed_model_of_one_tuned_specialist_is_that_specialist(kind: str, lm: str, tmp_path: Path) -> None:
    one, base = specialist(kind, lm, seed=1), specialist(kind, lm, seed=2).lm()
    text = one.lm()  # all of the update of the language model
    model = submerge.load(write_composed(tmp_path, text, [one], values(0, text, base)))
    assert model.modalities == (one.name,)
    batch = padded(prompt(1, 4, one, 3), prompt(2, 2, one, 1, one, 4))
    inputs = one.inputs(1, 2, 3)
    found, wanted = (m(**batch, **inputs).logits for m in (model, one.model))
    close(found, wanted, batch["attention_mask"])
    same_tokens(model, one.model, **batch, **inputs)
    same_tokens(model, one.model, **batch, **inputs, use_cache=False)
    same_tokens(model, one.model, **batch, **one.inputs(3, 2, 1))
    # transformers gives beams the inputs of other samples where samples have several sounds
    batch, inputs = padded(prompt(1, 4, one, 3), prompt(2, 2, one, 6)), one.inputs(1, 2)
    same_tokens(model, one.model, **batch, **inputs, num_beams=3, num_return_sequences=2)
