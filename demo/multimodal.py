"""Composes an image and an audio specialist of one small language model, and asks about both at once.

Run it: `python demo/multimodal.py`. It trains the language model on text and each specialist on its own
modality (CPU, about two minutes), merges them by three recipes, and judges all of them on held-out pictures
and sounds. All it makes lies in `demo/out/multimodal`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import submerge
from _examples import SOUNDS, Examples, load_examples
from _language import new_tokenizer
from _modalities import MODALITIES
from _pretrain_text import pretrain
from _questions import COLUMNS, Prompt, accuracy, prompts, read
from _run import FEW_STEPS, options_of, timed
from _specialists import load_specialist
from _train_specialists import train

OUT = Path(__file__).resolve().parent / "out" / "multimodal"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ssam": {"rank": "max", "scale": "auto"},
    "linear": {"weight": 1.0},
    "ties": {"weight": 1.0, "density": 0.5},
}
"""What merges the language updates, with its options."""
SHOWN = "ssam"
COUNT = 400
"""Questions in each column of the table."""


def main() -> None:
    """Run the demo."""
    options = options_of(__doc__, OUT, has_fast=True)
    console, started = Console(), time.perf_counter()
    count = 20 if options.fast else COUNT
    learned, asked = load_examples(100 if options.fast else SOUNDS)
    models = options.out / "models"
    if not (options.reuse and all((models / name).exists() for name in ("lm", *MODALITIES))):
        _train_all(models, learned, options.fast, console)
    questions = {column: prompts(column, asked, count) for column in COLUMNS}
    rows = _judge_parts(models, questions)
    merged = {method: _merge(method, options.out, models, console) for method in METHODS}
    for method, folder in merged.items():
        model, processor = submerge.load(folder), submerge.load_processor(folder)
        rows[f"composed: {method}"] = {name: accuracy(model, processor, qs) for name, qs in questions.items()}
    console.print(_table(rows))
    _show(merged[SHOWN], questions, console)
    console.print(f"All of it took {time.perf_counter() - started:.0f} s.")


def _train_all(folder: Path, examples: Mapping[str, Examples], fast: bool, console: Console) -> None:
    """Train the language model and its specialists, and write each as a folder of Hugging Face's."""
    shutil.rmtree(folder, ignore_errors=True)
    steps = {"steps": FEW_STEPS} if fast else {}
    with timed("the language model on text", console):
        lm = pretrain(**steps)
    lm.save_pretrained(folder / "lm")
    new_tokenizer().save_pretrained(folder / "lm")
    for name, modality in MODALITIES.items():
        with timed(f"the {name} specialist", console):
            specialist = train(modality, lm, examples[name], **steps)
        specialist.save(folder / name)


def _merge(method: str, out: Path, models: Path, console: Console) -> Path:
    """Write a recipe, merge by it, and return the folder of the composed model."""
    recipe = {
        "merge_method": method,
        "base_model": str(models / "lm"),
        "models": [
            {
                "model": str(models / name),
                "modality": name,
                "language_lora": str(models / name / "language"),
                "modality_lora": str(models / name / name),
            }
            for name in MODALITIES
        ],
        "parameters": dict(METHODS[method]),
    }
    path, folder = out / "recipes" / f"{method}.yaml", out / "merged" / method
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, width=200))
    if method == SHOWN:
        console.print(path.read_text(), highlight=False, markup=False, soft_wrap=True)
    shutil.rmtree(folder, ignore_errors=True)
    report = submerge.merge(path, folder)
    console.print(f"Composed by {method} in {report.seconds:.1f} s.")
    return folder


def _judge_parts(models: Path, questions: Mapping[str, list[Prompt]]) -> dict[str, dict[str, float]]:
    """Return what the language model and each specialist know by themselves, in percent by column.

    A specialist is asked about both, too, but sees or hears its own modality alone.
    """
    lm = AutoModelForCausalLM.from_pretrained(models / "lm")
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    rows = {"language model": {"text": accuracy(lm, tokenizer, questions["text"])}}
    for name in MODALITIES:
        specialist = load_specialist(MODALITIES[name], models / name)
        model, processor = specialist.model, specialist.processor
        rows[f"{name} specialist"] = {
            column: accuracy(model, processor, [prompt.only(name) for prompt in asked])
            for column, asked in questions.items()
            if column not in MODALITIES.keys() - {name}
        }
    return rows


def _table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    title = "Right answers, %; the last three columns need both"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False)
    table.add_column("model", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, scores in rows.items():
        cells = [f"{scores[column]:.1f}" if column in scores else "–" for column in COLUMNS]
        table.add_row(name, *cells, style="bold" if name.startswith("composed") else "")
    return table


def _show(folder: Path, questions: Mapping[str, list[Prompt]], console: Console) -> None:
    """Print a question of each column, what the composed model generates, and the answer."""
    model, processor = submerge.load(folder), submerge.load_processor(folder)
    shown = [asked[0] for asked in questions.values()]
    inputs = read(processor, shown)
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    said = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for prompt, answer in zip(shown, said, strict=True):
        mark = "" if answer == prompt.answer else f" (it is {prompt.answer})"
        console.print(f"{prompt.text} → {answer}{mark}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
