"""`python -m benchmarks.streams`: what the streams of a composed model cost a prefill.

A Llama of random values, and an image specialist of it with two LoRAs (language and modality) on all linear
maps, are merged by the library and loaded by it. A prompt runs in turns through

    plain      the language model alone
    one LoRA   the language model under one adapter of PEFT, which is not merged into it
    text       the composed model, a prompt of text
    mixed      the composed model, half of whose positions are an image's: its streams alone, for the features
               are computed before, and once for a whole `generate`

and a table of the least and the median times goes to standard output and to `benchmarks/results/streams.md`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks import page
from benchmarks.prefill import Seconds, Ways, run
from submerge.gating import TokenAssignment

DEFAULTS = {"layers": 8, "length": 512, "rank": 128, "repeats": 7, "threads": 2}
PLACEHOLDER = 999
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1000,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def write_models(root: Path, layers: int, rank: int) -> None:
    """Write the language model `lm`, the specialist `vision`, and its adapters `language` and `image`."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models

    text = transformers.LlamaConfig(**TEXT, num_hidden_layers=layers)
    language_model = transformers.LlamaForCausalLM(text)
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=PLACEHOLDER,
        vision_feature_layer=-1,
    )
    specialist = transformers.LlavaForConditionalGeneration(config)
    specialist.model.language_model.load_state_dict(language_model.model.state_dict())
    specialist.lm_head.load_state_dict(language_model.lm_head.state_dict())
    words = {f"w{i}": i for i in range(PLACEHOLDER)} | {"<image>": PLACEHOLDER}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0"))
    )
    for model, name in ((language_model, "lm"), (specialist, "vision")):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "vision" / "preprocessor_config.json").write_text("{}")
    for name in ("language", "image"):
        lora = LoraConfig(
            r=rank, target_modules=r".*language_model.*_proj", lora_alpha=rank, init_lora_weights=False
        )
        get_peft_model(specialist, lora).save_pretrained(root / name)
        specialist = transformers.LlavaForConditionalGeneration.from_pretrained(root / "vision")


def composed(root: Path) -> Any:
    """Return the composed model that the library merges of the specialist, and loads."""
    entry = {"model": str(root / "vision"), "modality": "image"}
    adapters = {"language_lora": str(root / "language"), "modality_lora": str(root / "image")}
    recipe = {"merge_method": "ssam", "base_model": str(root / "lm"), "models": [entry | adapters]}
    submerge.merge(recipe, root / "composed")
    return submerge.load(root / "composed")


def ways(root: Path, options: argparse.Namespace) -> Ways:
    """Write the models below a folder, and return what is timed, by name."""
    import transformers
    from peft import LoraConfig, get_peft_model

    length, rank = options.length, options.rank
    write_models(root, options.layers, rank)
    ids = torch.randint(0, PLACEHOLDER, (1, length))
    labels = torch.zeros(1, length, dtype=torch.long)
    labels[:, length // 4 : length // 4 + length // 2] = 1
    plain = transformers.AutoModelForCausalLM.from_pretrained(root / "lm").eval()
    adapted = get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(root / "lm"),
        LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False),
    ).eval()
    model = composed(root)
    streams = model.controller.streams

    def mixed() -> Any:
        with model.controller.gated.gate.over(TokenAssignment(labels, streams)):
            return model(input_ids=ids)

    return {
        "plain": lambda: plain(input_ids=ids),
        "one LoRA": lambda: adapted(input_ids=ids),
        "text": lambda: model(input_ids=ids),
        "mixed": mixed,
    }


def table(seconds: Seconds, options: argparse.Namespace) -> str:
    """Return the report: each way in ms, and over one LoRA."""
    head = page.header("benchmarks.streams")
    shape = f"{options.layers} layers of {TEXT['hidden_size']}, float32, rank {options.rank}"
    lora = seconds["one LoRA"]
    lines = [
        "# What streams cost",
        "",
        f"Made by `{head['command']}` on {head['date']}. {shape}; {options.length} positions, of which an "
        f"image's are half where the prompt is mixed; {options.threads} threads, {options.repeats} turns.",
        "",
        "| prefill | least ms | median ms | least, over one LoRA | median, over one LoRA |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, own in seconds.items():
        least, median = min(own), statistics.median(own)
        over = f"{least / min(lora):.2f} | {median / statistics.median(lora):.2f}"
        lines.append(f"| {name} | {1e3 * least:.0f} | {1e3 * median:.0f} | {over} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(__doc__, DEFAULTS, ways, table, "streams.md"))
