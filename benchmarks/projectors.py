"""`python -m benchmarks.projectors`: what mixing the projectors of several tasks costs a prefill.

A LLaVA of random values in the proportions of LLaVA-1.5-7B: 32 layers, a vision tower of 24 layers that is a
quarter as wide, 576 patches an image, a projector of two linear maps. A prompt with one image runs in turns
through

    plain      the model with one projector
    mixed      the model that the library loads, with the projectors of all tasks, each with a share
    top 2      the same, where each image has those of the two nearest tasks

A table of the least and the median times goes to standard output and to `benchmarks/results/projectors.md`.
The projectors are timed by themselves, too: beside a prefill they are less than its noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import submerge
from benchmarks import page
from benchmarks.prefill import Seconds, Ways, run
from submerge.store import (
    PROJECTOR_GATE,
    GateRecord,
    Manifest,
    ProjectorSettings,
    TensorRecord,
    module_key,
    prototype_key,
)

DEFAULTS = {"hidden": 512, "layers": 32, "tasks": 6, "repeats": 5, "threads": 2}
PLACEHOLDER, VOCABULARY = 999, 1000
PATCHES, PATCH_SIDE, TEXT_TOKENS = 576, 14, 74
MODULE = "multi_modal_projector"
BAR = 0.03
"""The share of a prefill that the projectors may cost beyond one of them."""


def model_of(options: argparse.Namespace) -> Any:
    """Return the LLaVA of random values."""
    import transformers

    hidden, side = options.hidden, round(PATCHES**0.5) * PATCH_SIDE
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=round(2.6875 * hidden),
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, hidden // 128),
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=hidden // 4,
        intermediate_size=hidden,
        num_hidden_layers=round(0.75 * options.layers),
        num_attention_heads=max(1, hidden // 256),
        image_size=side,
        patch_size=PATCH_SIDE,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=PLACEHOLDER)
    return transformers.LlavaForConditionalGeneration(config).eval()


def write_folder(folder: Path, model: Any, tasks: int) -> None:
    """Write the model with the projectors and prototypes of tasks, of random values, beside it."""
    model.save_pretrained(folder)
    own = model.model.multi_modal_projector.state_dict()
    width = own["linear_1.weight"].shape[1]
    bank = {
        module_key(k, f"{MODULE}.{name}"): x + 0.02 * torch.randn_like(x)
        for k in range(tasks)
        for name, x in own.items()
    }
    bank |= {prototype_key(k): torch.randn(1, width) for k in range(tasks)}
    save_file(bank, folder / "bank.safetensors")
    records = {name: TensorRecord("F32", tuple(x.shape), "0" * 32) for name, x in bank.items()}
    entries = tuple({"name": f"task{k}", "group": k} for k in range(tasks))
    gate = GateRecord(PROJECTOR_GATE, entries, ProjectorSettings(MODULE).to_mapping())
    manifest = Manifest("0", {"merge_method": "many"}, (), (), {}, {}, {}, gate=gate, bank=records)
    (folder / "submerge.json").write_text(manifest.text)


def ways(folder: Path, options: argparse.Namespace) -> Ways:
    """Write the model to a folder, and return what is timed, by name: prefills, and the projectors alone."""
    import transformers

    write_folder(folder, model_of(options), options.tasks)

    models = {
        "plain": transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        "mixed": submerge.load(folder),
        "top 2": submerge.load(folder, top=2),
    }
    side = models["plain"].config.vision_config.image_size
    text = torch.randint(0, PLACEHOLDER, (1, TEXT_TOKENS))
    inputs = {
        "input_ids": torch.cat([text[:, :10], torch.full((1, PATCHES), PLACEHOLDER), text[:, 10:]], 1),
        "pixel_values": torch.randn(1, 3, side, side),
    }
    features = torch.randn(1, PATCHES, options.hidden // 4)
    prefills = {name: lambda own=own: own(**inputs) for name, own in models.items()}
    projectors = {
        f"{name}, projectors": lambda own=own: own.model.multi_modal_projector(features)
        for name, own in models.items()
    }
    return prefills | projectors


def table(seconds: Seconds, options: argparse.Namespace) -> str:
    """Return the report: each way in ms, and the projectors' share of a prefill."""
    head = page.header("benchmarks.projectors")
    shape = f"{options.layers} layers of {options.hidden}, float32, {options.tasks} tasks"
    lines = [
        "# What mixed projectors cost",
        "",
        f"Made by `{head['command']}` on {head['date']}. {shape}; {PATCHES} positions of an image and "
        f"{TEXT_TOKENS} of text; {options.threads} threads, {options.repeats} turns. Beyond one projector: "
        f"the projectors' time less that of `plain`, over the prefill of `plain`; the bar is {BAR:.0%}.",
        "",
        "| | least ms | median ms | least, beyond one projector | median, beyond one projector |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, own in seconds.items():
        cells = [f"{1e3 * form(own):.1f}" for form in (min, statistics.median)]
        if name.endswith("projectors"):
            cells += [f"{_beyond(seconds, name, form):.1%}" for form in (min, statistics.median)]
        lines.append(f"| {' | '.join([name, *cells, *[''] * (4 - len(cells))])} |")
    return "\n".join(lines)


def _beyond(seconds: Seconds, name: str, form: Callable[[Any], float]) -> float:
    more = form(seconds[name]) - form(seconds["plain, projectors"])
    return more / form(seconds["plain"])


if __name__ == "__main__":
    raise SystemExit(run(__doc__, DEFAULTS, ways, table, "projectors.md"))
