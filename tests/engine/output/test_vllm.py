"""The command by which vLLM serves adapters, and which adapters it is not offered for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from submerge.engine import vllm_command

DECODER = {"architectures": ["LlamaForCausalLM"]}
BESIDE = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "llama"}}
T5 = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}


def adapter(folder: Path, keys: tuple[str, ...] = ("q_proj.lora_A.weight",), **more: Any) -> Path:
    folder.mkdir()
    config = {"r": 4, "base_model_name_or_path": "org/base", "task_type": None, "bias": "none", **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{key}": torch.zeros(4, 8) for key in keys}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (17, 32), (257, 320), (512, 512)])
def test_the_least_rank_that_vllm_allows(rank: int, allowed: int, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a b", r=rank)
    found = vllm_command({"one": folder}, DECODER)
    assert found is not None
    words = ["vllm", "serve", "org/base", "--enable-lora", "--max-lora-rank", str(allowed)]
    assert shlex.split(found) == [*words, "--lora-modules", f"one={folder}"]


def test_several_adapters_and_a_revision(tmp_path: Path) -> None:
    folders = {name: adapter(tmp_path / name, r=r, revision="abc") for name, r in (("a", 9), ("b", 3))}
    found = vllm_command(folders, BESIDE)
    assert found is not None
    assert "serve org/base --revision abc --enable-lora --max-lora-rank 16 --max-loras 2" in found
    adapter(tmp_path / "c", base_model_name_or_path="org/other", revision="abc")
    assert vllm_command({**folders, "c": tmp_path / "c"}, BESIDE) is None, "they have no base in common"


def test_a_base_that_was_not_looked_at(tmp_path: Path) -> None:
    assert vllm_command({"a": adapter(tmp_path / "a", task_type="CAUSAL_LM")}) is not None
    assert vllm_command({"b": adapter(tmp_path / "b")}) is None
    assert vllm_command({"c": adapter(tmp_path / "c", task_type="SEQ_CLS")}) is None
    (tmp_path / "base@1").mkdir()
    for config, there in ((DECODER, True), (T5, False)):
        (tmp_path / "base@1" / "config.json").write_text(json.dumps(config))
        beside = adapter(tmp_path / str(there), base_model_name_or_path=str(tmp_path / "base@1"))
        command = vllm_command({"d": beside})
        assert (command is not None) == there
        assert not command or f"serve {tmp_path / 'base@1'} --enable-lora" in command


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (T5, {}),
        ({"architectures": ["BertForSequenceClassification"]}, {}),
        ({"architectures": ["ViTModel"]}, {}),
        ({"architectures": ["GPTNeoXForCausalLM"]}, {}),
        ({"architectures": ["GPT2LMHeadModel"]}, {"fan_in_fan_out": True}),
        (DECODER, {"r": 513}),
        (DECODER, {"modules_to_save": ["score"]}),
        (DECODER, {"use_dora": True}),
        (DECODER, {"target_parameters": ["mlp.experts.up"]}),
        (DECODER, {"bias": "all"}),
        (DECODER, {"base_model_name_or_path": None}),
        (DECODER, {"keys": ("embed_tokens.lora_embedding_A",)}),
    ],
)
def test_where_vllm_would_refuse_there_is_no_command(
    config: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    assert vllm_command({"a": adapter(tmp_path / "a", **more)}, config) is None
