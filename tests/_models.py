"""Builders of tiny models: real architectures through transformers, and hand-made folders without it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from submerge.engine import Settings
from submerge.methods import METHODS

TOKENIZER = "tokenizer.json"
ROOM = Settings(max_memory=64 * 10**9)
"""The process that runs the tests already holds more than the default allows."""


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes on disk, and the class that loads them."""

    base: Path
    tuned: tuple[Path, ...]
    architecture: str

    def recipe(self, method: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Return a recipe over all fine-tunes, in mergekit's form."""
        weight = 1.0 if method == "linear" else 0.5
        own = {"parameters": {"weight": weight}} if METHODS[method].option("weight") else {}
        found: dict[str, Any] = {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [{"model": str(t), **own} for t in self.tuned],
            "parameters": dict(parameters or {}),
        }
        return found | more

    def write_recipe(self, method: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> Path:
        """Write such a recipe beside the models, and return its path."""
        path = self.base.parent / f"{method}.yaml"
        path.write_text(yaml.safe_dump(self.recipe(method, parameters, **more), sort_keys=False))
        return path


# --- checkpoints by hand: fast, of any shape ------------------------------------------------------

SMALL = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.attn.q.weight": (16, 16),
    "model.layers.0.mlp.up.weight": (48, 16),
    "model.layers.0.norm.weight": (16,),
    "model.layers.1.attn.q.weight": (16, 16),
    "model.layers.1.mlp.up.weight": (48, 16),
    "model.layers.1.norm.weight": (16,),
    "model.norm.weight": (16,),
    "lm_head.weight": (40, 16),
}
CONFIG = {"model_type": "toy", "architectures": ["ToyModel"], "vocab_size": 40, "tie_word_embeddings": False}


def state(
    shapes: Mapping[str, Sequence[int]] = SMALL, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return random tensors of these shapes."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tuple(shape), generator=draw).to(dtype) for name, shape in shapes.items()}


def perturbed(
    base: Mapping[str, torch.Tensor], seed: int, scale: float = 0.1, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return a fine-tune: every float tensor moved a little, everything else as it was."""
    draw = torch.Generator().manual_seed(1000 + seed)
    return {
        name: (t.float() + scale * torch.randn(t.shape, generator=draw)).to(dtype or t.dtype)
        if t.is_floating_point()
        else t.clone()
        for name, t in base.items()
    }


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
    tokens: Mapping[str, int] | None = None,
) -> Path:
    """Write a checkpoint folder: weights in so many shards, a config, and a tokenizer if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    groups = [names[i::shards] for i in range(shards)]
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for file, group in zip(files if shards > 1 else ["model.safetensors"], groups, strict=True):
        save_file({n: tensors[n].contiguous() for n in group}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        where = {n: file for file, group in zip(files, groups, strict=True) for n in group}
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if tokens is not None:
        (folder / TOKENIZER).write_text(json.dumps({"model": {"type": "WordLevel", "vocab": dict(tokens)}}))
    return folder


def family(
    root: Path,
    count: int = 2,
    shapes: Mapping[str, Sequence[int]] = SMALL,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Family:
    """Write a base and `count` fine-tunes of these shapes."""
    base = state(shapes, dtype=dtype)
    tuned = tuple(write(root / f"tuned{i}", perturbed(base, i), **more) for i in range(count))
    return Family(write(root / "base", base, **more), tuned, "ToyModel")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a folder's safetensors files, a gate's bank left out."""
    files = (file for file in sorted(folder.glob("*.safetensors")) if file.name != "bank.safetensors")
    return {name: t for file in files for name, t in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by its path inside."""
    return {
        os.path.relpath(os.path.join(place, name), folder): Path(place, name).read_bytes()
        for place, _, names in os.walk(folder)
        for name in names
    }


# --- real architectures, small --------------------------------------------------------------------

TEXT = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip


def quiet_transformers() -> Any:
    """Import transformers without its warnings and progress bars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _llava(t: Any) -> Any:
    vision = t.CLIPVisionConfig(**VISION)
    return t.LlavaConfig(
        vision_config=vision,
        text_config=t.LlamaConfig(**TEXT),
        image_token_index=63,
        image_seq_length=4,
        vision_feature_select_strategy="default",
    )


def _clip(t: Any) -> Any:
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)


def _t5(t: Any) -> Any:
    return t.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )


CONFIGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "llama": ("LlamaForCausalLM", lambda t: t.LlamaConfig(**TEXT, tie_word_embeddings=False)),
    "qwen2": ("Qwen2ForCausalLM", lambda t: t.Qwen2Config(**TEXT, tie_word_embeddings=True)),
    "gemma": ("GemmaForCausalLM", lambda t: t.GemmaConfig(**TEXT, head_dim=8)),
    "gemma2": ("Gemma2ForCausalLM", lambda t: t.Gemma2Config(**TEXT, head_dim=8, sliding_window=8)),
    "bert": ("BertForMaskedLM", lambda t: t.BertConfig(**TEXT)),
    "vit": ("ViTForImageClassification", lambda t: t.ViTConfig(**VISION, num_labels=3)),
    "clip": ("CLIPModel", _clip),
    "t5": ("T5ForConditionalGeneration", _t5),
    "mixtral": (
        "MixtralForCausalLM",
        lambda t: t.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2),
    ),
    "llava": ("LlavaForConditionalGeneration", _llava),
}


def architecture(kind: str, root: Path, count: int = 2, dtype: torch.dtype = torch.float32) -> Family:
    """Write a tiny model of a real architecture and its fine-tunes, the first in several shards."""
    t = quiet_transformers()
    name, config = CONFIGS[kind]
    torch.manual_seed(0)
    model = getattr(t, name)(config(t)).to(dtype)
    folders = [root / "base", *(root / f"tuned{i}" for i in range(count))]
    for number, folder in enumerate(folders):
        if number:
            draw = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_((0.05 * torch.randn(p.shape, generator=draw)).to(dtype))
        model.save_pretrained(folder, **({"max_shard_size": "10KB"} if number == 1 else {}))
        (folder / "LICENSE").write_text(f"licence of {folder.name}\n")
    return Family(folders[0], tuple(folders[1:]), name)


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Return something that the architecture's forward pass takes."""
    ids = torch.arange(6).unsqueeze(0) + 2
    image = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    return {
        "vit": {"pixel_values": image},
        "clip": {"input_ids": torch.cat([ids, torch.ones(1, 1, dtype=torch.long)], 1), "pixel_values": image},
        "t5": {"input_ids": ids, "decoder_input_ids": ids},
        "llava": {"input_ids": torch.cat([torch.full((1, 4), 63), ids], 1), "pixel_values": image},
    }.get(kind, {"input_ids": ids})
