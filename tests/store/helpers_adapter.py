"""Tiny models, adapters that PEFT made of them, and what an adapter does to a base, in plain formulas."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from _models import TEXT, VISION, quiet_transformers
from store.helpers_store import messages
from submerge.errors import RequestError, SubmergeError
from submerge.store import Adapter, Add, FileTable, LowRankPart, Replace, Rows, fit_adapter, open_adapter
from submerge.store.adapter import Composed, StackedRows

State = dict[str, torch.Tensor]


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = torch.nn.Conv1d(4, 6, 3)
        self.plane = torch.nn.Conv2d(3, 5, (3, 2))
        self.point = torch.nn.Conv2d(5, 7, 1)
        self.attention = torch.nn.MultiheadAttention(8, 2)
        self.head = torch.nn.Linear(7, 3)


class BatchNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plane = torch.nn.Conv2d(3, 5, 3)
        self.norm = torch.nn.BatchNorm2d(5)


class Experts(torch.nn.Module):
    """Experts in parameters of their own, without gates (Nemotron-H), and in a module's `weight` (JetMoE)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.Module()
        self.experts.up_proj = torch.nn.Parameter(torch.randn(3, 10, 6))
        self.experts.down_proj = torch.nn.Parameter(torch.randn(3, 6, 10))
        self.input_linear = torch.nn.Module()
        self.input_linear.weight = torch.nn.Parameter(torch.randn(3, 5, 6))


def _gpt2(t: Any, **more: Any) -> Any:
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **more))


def _bert(t: Any) -> Any:
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    return t.BertForSequenceClassification(t.BertConfig(**text, num_labels=3))


def _roberta(t: Any) -> Any:
    """With a head of two linear maps."""
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    return t.RobertaForSequenceClassification(t.RobertaConfig(**text, num_labels=3, pad_token_id=1))


MODELS: dict[str, Callable[[Any], Any]] = {
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, attention_bias=True)),
    "tied": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=True)),
    "gpt2": _gpt2,
    "gpt2-untied": lambda t: _gpt2(t, tie_word_embeddings=False),
    "bert": _bert,
    "roberta": _roberta,
    "vit": lambda t: t.ViTForImageClassification(t.ViTConfig(**VISION, num_labels=3)),
    "mixtral": lambda t: t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=4)),
    "qwen3-moe": lambda t: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**TEXT, head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=10)
    ),
    "gpt-oss": lambda t: t.GptOssForCausalLM(
        t.GptOssConfig(**{**TEXT, "intermediate_size": 16}, head_dim=8, num_local_experts=3)
    ),
    "llava": lambda t: t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**VISION),
            text_config=t.LlamaConfig(**TEXT),
            image_token_index=63,
        )
    ),
    "mamba": lambda t: t.MambaForCausalLM(
        t.MambaConfig(
            vocab_size=TEXT["vocab_size"],
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
            time_step_rank=6,
        )
    ),
    "convolutions": lambda _: Convolutions(),
    "batch-norm": lambda _: BatchNorm(),
    "experts": lambda _: Experts(),
}


ATTENTION = ["q_proj", "v_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION}),
    "rslora": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 3, "up_proj": 7},
            "alpha_pattern": {"v_proj": 5, "model.layers.0.mlp.up_proj": 2.5},
            "use_rslora": True,
        },
    ),
    "embedding": ("llama", {"r": 3, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "bias": ("llama", {"r": 2, "target_modules": ATTENTION, "bias": "lora_only"}),
    "biases": ("llama", {"r": 2, "target_modules": ["q_proj"], "bias": "all"}),
    "bias-of-b": ("llama", {"r": 2, "lora_alpha": 5, "target_modules": ATTENTION, "lora_bias": True}),
    "tokens": ("llama", {"r": 2, "target_modules": ATTENTION, "trainable_token_indices": [7, 3, 11]}),
    "dora": ("llama", {"r": 2, "target_modules": [*ATTENTION, "embed_tokens"], "use_dora": True}),
    "whole": ("llama", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "conv1d": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d-dora": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "both-kinds": ("gpt2-untied", {"r": 2, "target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "classifier": ("bert", {"r": 2, "target_modules": ["query", "dense"], "task_type": "SEQ_CLS"}),
    "classifier-biases": (
        "bert",
        {
            "r": 2,
            "target_modules": ["query"],
            "modules_to_save": ["pooler"],
            "bias": "all",
            "task_type": "SEQ_CLS",
        },
    ),
    "rows-by-name": (
        "llama",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2, 3]},
        },
    ),
    "bare-names": (
        "mixtral",
        {"r": 2, "target_modules": "all-linear", "target_parameters": ["gate_up_proj", "down_proj"]},
    ),
    "square-experts": ("gpt-oss", {"r": 2, "target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "ungated-experts": (
        "experts",
        {
            "r": 2,
            "target_modules": [],
            "target_parameters": ["experts.down_proj", "experts.up_proj", "input_linear.weight"],
            "rank_pattern": {"input_linear.weight": 3},
        },
    ),
    "mica": ("llama", {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    "velora": (
        "llama",
        {"r": 2, "target_modules": ["q_proj"], "velora_config": {"num_groups": 2}},
    ),
    "convolutions": (
        "convolutions",
        {"r": 3, "target_modules": ["flat", "plane", "point"], "modules_to_save": ["head"]},
    ),
    "convolutions-dora": ("convolutions", {"r": 3, "target_modules": ["plane", "point"], "use_dora": True}),
    "mixtral": (
        "mixtral",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "gate.weight"],
            "rank_pattern": {"experts.down_proj": 3},
        },
    ),
    "qwen3-moe": ("qwen3-moe", {"r": 2, "target_modules": [], "target_parameters": ["experts.gate_up_proj"]}),
    "gpt-oss": (
        "gpt-oss",
        {"r": 2, "target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}
"""The adapters that PEFT makes: the model, and the options."""


@dataclass(frozen=True)
class Made:
    """An adapter on disk, the base's tensors, and those of the model that PEFT merged it into."""

    folder: Path
    base: State
    merged: State = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.base.items()}


def copied(model: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def wrap(kind: str, seed: int = 0, random: bool = True, **options: Any) -> tuple[Any, State]:
    """Return a PEFT model with an adapter, filled with random numbers or not, and the base's tensors."""
    transformers = quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        torch.manual_seed(seed)
        model = MODELS[kind](transformers)
        base = copied(model)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad and random:
                parameter.copy_(torch.randn_like(parameter))
    return wrapped, base


def make(kind: str, folder: Path, seed: int = 0, **options: Any) -> Made:
    """Write an adapter with random factors, as PEFT saves it."""
    wrapped, base = wrap(kind, seed, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(folder))
        merged = copied(wrapped.merge_and_unload())
    return Made(folder, base, merged)


def loaded(kind: str, folder: Path, base: State) -> State:
    """Return the tensors of a model after PEFT read an adapter and merged it."""
    transformers = quiet_transformers()
    with warnings.catch_warnings():
        for kind_of_warning in (DeprecationWarning, FutureWarning):  # others are what is looked for
            warnings.simplefilter("ignore", kind_of_warning)
        import peft

        model = MODELS[kind](transformers)
        model.load_state_dict(base)
        return copied(peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload())


def update(adapter: Adapter, name: str, shape: torch.Size) -> torch.Tensor:
    with FileTable() as table:
        left, right = adapter.factors(name, table)
    return (left @ right).reshape(shape)


def applied(base: Mapping[str, torch.Tensor], adapter: Adapter) -> State:
    """Return the base's tensors with what the adapter does to each."""
    found = dict(base)
    with FileTable() as table:
        for name, part in adapter.parts.items():
            weight = base[name]
            if isinstance(part, LowRankPart):
                weight = weight + update(adapter, name, weight.shape)
                magnitude = adapter.magnitude(name, table)
                if magnitude is not None:
                    outputs = 1 if part.scales_columns else 0
                    inputs = [axis for axis in range(weight.ndim) if axis != outputs]
                    norm = weight.square().sum(inputs, keepdim=True).sqrt()
                    weight = weight * magnitude.reshape(norm.shape) / norm
            else:
                values = adapter.tensor(name, table)
                if isinstance(part, Rows):
                    weight = weight.clone()
                    weight[list(part.indices)] = values
                elif isinstance(part, Replace):
                    weight = values
                else:
                    assert isinstance(part, Add | Composed | StackedRows)
                    weight = weight + values.view(weight.shape)
            found[name] = weight
    return found


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def by_hand(folder: Path, tensors: State | None = None, **config: Any) -> Path:
    """Write an adapter of one module of rank 2, or of these tensors, with these fields changed."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(3, 2)} | (tensors or {})
    keys = {f"base_model.model.{name}": tensor for name, tensor in made.items() if tensor.ndim}
    save_file(keys, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def described(specs: Sequence[str]) -> list[dict[str, Any]]:
    """Return what adapters hold, or why they cannot be opened; `-` before a name asks for headers alone."""
    return [_described(spec.lstrip("-"), spec[0] != "-") for spec in specs]


def _described(spec: str, download: bool) -> dict[str, Any]:
    try:
        adapter = open_adapter(spec, download=download)
    except SubmergeError as error:
        return {"error": str(error), "code": error.exit_code}
    values = None
    if not adapter.pending:
        with FileTable() as table:
            left, right = adapter.factors("q.weight", table)
            values = (left @ right).tolist()
    return {
        "revision": adapter.revision,
        "shapes": {name: list(part.shape) for name, part in adapter.parts.items()},
        "values": values,
        "base": adapter.base,
        "tokenizer": sorted(map(str, adapter.tokenizer.files)),
    }


def stored(folder: Path) -> State:
    return load_file(folder / "adapter_model.safetensors")


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        open_adapter(str(folder), **options)
    return messages(caught.value)


def unfit(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(RequestError) as caught:
        fit_adapter(adapter, shapes)
    return messages(caught.value)
