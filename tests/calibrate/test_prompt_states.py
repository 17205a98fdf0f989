"""States of a model at prompts: those that transformers gives, with and without an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _mixtures import dense_models
from _models import quiet_transformers
from submerge.calibrate import PromptPooling, prompt_states
from submerge.store import Adapter, open_checkpoint, open_model

PROMPTS = [[[1, 4, 7], [1, 9]], [[1, 3, 5, 8]]]


def expected(model: torch.nn.Module, pooling: PromptPooling) -> torch.Tensor:
    """Return the means over prompts of the states before each layer, as transformers hands them out."""
    sets = []
    for prompts in PROMPTS:
        states = []
        for ids in prompts:
            with torch.no_grad():
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
            rows = torch.stack(hidden)[:, 0]
            states.append(rows[:, -1] if pooling == "last" else rows.mean(1))
        sets.append(torch.stack(states).mean(0))
    return torch.stack(sets)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_are_those_of_transformers(pooling: PromptPooling, tmp_path: Path) -> None:
    base = dense_models(tmp_path, "qwen3") / "base"
    told: list[int] = []
    states = prompt_states(open_checkpoint(str(base)), None, PROMPTS, pooling=pooling, progress=told.append)
    model = quiet_transformers().AutoModelForCausalLM.from_pretrained(base)
    torch.testing.assert_close(states.float(), expected(model, pooling), atol=1e-5, rtol=1e-5)
    assert states.dtype == torch.float64
    assert told == [1, 2, 3]


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_act_on_the_states(dora: bool, tmp_path: Path) -> None:
    base = dense_models(tmp_path / "models", "llama") / "base"
    quiet_transformers()
    peft = pytest.importorskip("peft")
    model = quiet_transformers().AutoModelForCausalLM.from_pretrained(base)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=dora))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    adapter = open_model(str(tmp_path / "adapter"), root=tmp_path, adapter=True)
    assert isinstance(adapter, Adapter)
    states = prompt_states(open_checkpoint(str(base)), adapter, PROMPTS, pooling="last")
    torch.testing.assert_close(states.float(), expected(wrapped, "last"), atol=1e-4, rtol=1e-4)
