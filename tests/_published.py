"""Tiny models of the families that published recipes merge, with tokenizers, under names of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers

__all__ = ["write_published_models"]

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_key_value_heads": 1, "num_experts_per_tok": 2, "tie_word_embeddings": False}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "heron": (
        "Llama",
        {"num_key_value_heads": 1, "tie_word_embeddings": False},
        ("base", "chat", "code", "math", "story"),
    ),
    "alder": (
        "Mistral",
        {"num_key_value_heads": 1, "tie_word_embeddings": False, "sliding_window": None},
        ("base", "instruct", "story", "reason"),
    ),
    "quartz": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}, ("base", "coder", "math")),
    "opal": ("Gemma", {"num_key_value_heads": 1, "head_dim": 8}, ("base", "it", "roleplay")),
    "fable": ("Phi", {}, ("base", "teacher", "student")),
    "mesa": ("GPTNeoX", {"tie_word_embeddings": False}, ("base", "dialog", "news")),
    "onyx": ("Gemma2", {"num_key_value_heads": 1, "head_dim": 8}, ("it", "roleplay")),
    "saga": ("Phi3", {"num_key_value_heads": 2}, ("base", "teacher", "student")),
    "fern": ("StableLm", {"num_key_value_heads": 2, "tie_word_embeddings": False}, ("base", "chat", "code")),
    "swarm": ("Mixtral", EXPERTS | {"num_local_experts": 4}, ("base", "chat", "math")),
    "hive": (
        "Qwen2Moe",
        EXPERTS
        | {
            "num_experts": 4,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 12,
            "decoder_sparse_step": 1,
        },
        ("base", "chat"),
    ),
}
"""The class in transformers, its settings, and the models of each family."""
CHATML = ("<|im_start|>", "<|im_end|>")
TOOLS = ("<|call|>", "<|result|>")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_published_models(root: Path) -> Path:
    """Write all families below a folder, and return it.

    Beside them `heron/chatml` has two tokens more than `heron/base`, `heron/tools` two others at their ids,
    and `heron/lora` and `heron/second-lora` are adapters. The models of `lens` see.
    """
    t = quiet_transformers()
    for number, (family, (name, settings, members)) in enumerate(FAMILIES.items()):
        torch.manual_seed(number)
        model = getattr(t, f"{name}ForCausalLM")(getattr(t, f"{name}Config")(**SIZES, **settings))
        for member in members:
            _save(model, root / family / member)
            _move(model)
    chatml = t.LlamaForCausalLM.from_pretrained(root / "heron" / "chat")
    chatml.resize_token_embeddings(VOCABULARY + len(CHATML), mean_resizing=False)
    _save(chatml, root / "heron" / "chatml", CHATML)
    _move(chatml)
    _save(chatml, root / "heron" / "tools", TOOLS)
    for name in ("lora", "second-lora"):
        _write_adapter(root / "heron" / name, chatml.config.num_hidden_layers)
    _write_vision_models(root / "lens")
    return root


def _write_vision_models(root: Path) -> None:
    t = quiet_transformers()
    own = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": None, "tie_word_embeddings": False}
    text = SIZES | own | {"model_type": "mistral"}
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    config = t.Mistral3Config(text_config=text, vision_config=vision, image_token_index=VOCABULARY - 1)
    model = t.Mistral3ForConditionalGeneration(config)
    for member in ("base", "charts"):
        _save(model, root / member)
        _move(model)


def _move(model: Any, scale: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape))


def _save(model: Any, folder: Path, added: tuple[str, ...] = ()) -> None:
    model.save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4)), *added]
    t = quiet_transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=plain, additional_special_tokens=list(added), **special
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def _write_adapter(folder: Path, layers: int) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    prefix = "base_model.model.model.layers"
    factors = {}
    for layer in range(layers):
        factors[f"{prefix}.{layer}.self_attn.q_proj.lora_A.weight"] = 0.2 * torch.randn(2, 16)
        factors[f"{prefix}.{layer}.self_attn.q_proj.lora_B.weight"] = 0.2 * torch.randn(16, 2)
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "base_model_name_or_path": "heron/base", "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
