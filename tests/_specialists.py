"""Tiny multimodal models of one language model, real classes of transformers, with PEFT's adapters."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from _models import quiet_transformers
from _tokenizers import fast_tokenizer, special
from submerge.deferred import quietly

State = dict[str, torch.Tensor]

ROWS = 64
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, ROWS)}
IMAGE, AUDIO = "<image>", "<|AUDIO|>"
TEXT: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LANGUAGE = r".*language_model.*layers\.\d+\.(?:self_attn|mlp)\.(?:q|v|o|up|down)_proj"


def quiet() -> AbstractContextManager[None]:
    """Return a context in which transformers prints nothing about what it saves and loads."""
    return quietly(quiet_transformers().logging)


@dataclass(frozen=True)
class Specialists:
    """A language model in `base`, and multimodal models of it beside it, by their folders' names."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def entry(self, name: str, modality: str, **more: str) -> dict[str, Any]:
        """Return an entry of a recipe; adapters are named by their folders."""
        folders = {k: str(self.path(v)) if k.endswith("lora") else v for k, v in more.items()}
        return {"model": str(self.path(name)), "modality": modality, **folders}

    def recipe(self, method: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Return a recipe of a composed model."""
        return {
            "merge_method": method,
            "base_model": str(self.path("base")),
            "models": list(entries),
            **more,
        }

    def load(self, name: str) -> Any:
        """Return the model of a folder, of the class that its configuration names."""
        import transformers

        kind = json.loads((self.path(name) / "config.json").read_text())["architectures"][0]
        with quiet():
            return getattr(transformers, kind).from_pretrained(self.path(name))

    def adapt(self, name: str, folder: str, seed: int, **options: Any) -> None:
        """Save a LoRA of a model whose factors are all random."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        settings = {"r": 2, "lora_alpha": 4, "target_modules": LANGUAGE, "init_lora_weights": False}
        with quiet():
            adapted = get_peft_model(self.load(name), LoraConfig(**settings | options))
            adapted.save_pretrained(self.path(folder))

    def tune(self, name: str, folder: str, seed: int) -> None:
        """Save a copy of a model whose language model is changed: linear maps and norms of its layers."""
        torch.manual_seed(seed)
        model = self.load(name)
        with torch.no_grad():
            for own, parameter in model.named_parameters():
                if "language_model" in own and ".layers." in own:
                    parameter += 0.05 * torch.randn_like(parameter)
        self.save(model, folder, self.path(name))

    def save(self, model: Any, folder: str, beside: Path) -> None:
        """Save a model with the tokenizer and the processor of another folder."""
        shutil.copytree(beside, self.path(folder), ignore=shutil.ignore_patterns("*.safetensors"))
        with quiet():
            model.save_pretrained(self.path(folder))

    def write(self, name: str, model: Any, base: Any, placeholder: str) -> None:
        """Save a multimodal model with the base's values, a token more, and a processor."""
        own, language = model.state_dict(), base.state_dict()
        with torch.no_grad():
            for inner, match in ((i, m) for i in own for m in language if _inner(i) == _inner(m)):
                own[inner][: len(language[match])] = language[match]
        with quiet():
            model.save_pretrained(self.path(name))
        fast_tokenizer(special(placeholder), WORDS).save_pretrained(self.path(name))
        (self.path(name) / "preprocessor_config.json").write_text("{}")

    def adapted(self, name: str, folder: str) -> State:
        """Return a model's state after PEFT has merged an adapter into it."""
        from peft import PeftModel

        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(self.load(name), self.path(folder)).merge_and_unload()
        return dict(merged.state_dict())

    def language(self, state: State) -> State:
        """Return a state's language model under the base's names."""
        base = load_file(self.path("base") / "model.safetensors")
        names = {name: [own for own in state if _inner(own) == _inner(name)] for name in base}
        return {name: state[own] for name, (own,) in names.items()}


def _inner(name: str) -> str:
    """Return a name of the language model without wrappers; others keep what tells them apart."""
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))


def make_specialists(root: Path, language: str = "Llama") -> Specialists:
    """Return the base and two specialists of it, `vision` (Llava) and `hearing` (Qwen2-Audio).

    `language` is the class of the language model.
    """
    import transformers
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
    )

    made = Specialists(root)
    torch.manual_seed(0)
    config, model = (getattr(transformers, f"{language}{kind}") for kind in ("Config", "ForCausalLM"))
    base = model(config(**TEXT))
    with quiet():
        base.save_pretrained(made.path("base"))
    fast_tokenizer([], WORDS).save_pretrained(made.path("base"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**tower, image_size=8, patch_size=4)
    text = {"text_config": config(**TEXT | {"vocab_size": ROWS + 4}), "tie_word_embeddings": False}
    llava = LlavaConfig(**text, vision_config=vision, image_token_index=ROWS, vision_feature_layer=-1)
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    qwen = Qwen2AudioConfig(
        **text,
        audio_config={**audio, "num_mel_bins": 8, "max_source_positions": 16},
        audio_token_index=ROWS,
    )
    made.write("vision", LlavaForConditionalGeneration(llava), base, IMAGE)
    made.write("hearing", Qwen2AudioForConditionalGeneration(qwen), base, AUDIO)
    return made
