"""`python -m benchmarks.null_space`: does the null-space ratio of an adapter fall with its scale?

PEFT trains LoRA adapters of MiniLM, a pretrained encoder, on tasks whose inputs are pairs of texts. At some
steps each is saved, with its accuracy on validation pairs; then the library measures it on unlabelled ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import submerge
from benchmarks import page
from benchmarks.console import say
from benchmarks.replication.text import write_base
from submerge.calibrate import Item

TASKS = ("scitail", "snli")
RATES = (1e-3, 2e-4)
SAVED = (50, 100, 200)
BATCH = 16
TESTED, MEASURED = 200, 64
HOOKS = {"last_quarter": "the last quarter of the layers", ".": "all layers"}
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["query", "value"],
    "task_type": "SEQ_CLS",
}

WORK = Path(os.environ.get("SUBMERGE_CACHE") or Path(__file__).resolve().parent / "work") / "null-space"

Row = Mapping[str, str]


def main() -> None:
    """Train, measure, and write `null_space.json` and `null_space.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.null_space", description=__doc__)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(SAVED), help="at which adapters are saved"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where the adapters are saved")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that the figures are the same on machines of one kind
    data, base = Path(os.environ["SUBMERGE_DATA"]) / "text", options.work / "base"
    write_base(base)
    runs = [
        adapter
        for task in TASKS
        for rate in RATES
        for adapter in _trained(base, task, rate, options.steps, data)
    ]
    adapters = {name: about for name, _, about in runs}
    measured = _measured(base, {name: folder for name, folder, _ in runs}, adapters, data)
    results = page.header("benchmarks.null_space") | {"adapters": adapters} | measured
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "null_space.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "null_space.md").write_text(markdown(results))


def _rows(data: Path, task: str, split: str) -> list[Row]:
    """Return the labelled pairs of a task."""
    with gzip.open(data / task / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if row["y"]]


def _trained(
    base: Path, task: str, rate: float, saved: Sequence[int], data: Path
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield each adapter of a training run: its name, its folder, and task, rate, step and accuracy."""
    torch.manual_seed(0)
    rows, held_out = _rows(data, task, "train"), _rows(data, task, "validation")[:TESTED]
    labels = sorted({row["y"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(base)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    model = get_peft_model(classifier, LoraConfig(**LORA))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    draw = random.Random(0)

    def outputs(batch: Sequence[Row]) -> Any:
        texts = [row["a"] for row in batch], [row["b"] for row in batch]
        inputs = tokenizer(*texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return model(**inputs, labels=torch.tensor([labels.index(row["y"]) for row in batch]))

    model.train()
    for step in range(1, max(saved) + 1):
        outputs(draw.sample(rows, BATCH)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in saved:
            model.eval()
            accuracy = _accuracy(outputs, held_out, labels)
            model.train()
            name = f"{task}, {rate:g}, step {step}"
            folder = base.parent / f"{task}-{rate:g}-{step}"
            model.save_pretrained(folder)
            say(f"{name}: accuracy {accuracy:.3f}")
            about = {"task": task, "rate": rate, "step": step, "accuracy": accuracy}
            yield name, folder, about


@torch.no_grad()
def _accuracy(outputs: Any, rows: Sequence[Row], labels: Sequence[str]) -> float:
    """Return the share of pairs whose label is found."""
    right = 0
    for start in range(0, len(rows), 50):
        batch = rows[start : start + 50]
        predicted = outputs(batch).logits.argmax(-1).tolist()
        right += sum(labels[i] == row["y"] for i, row in zip(predicted, batch, strict=True))
    return right / len(rows)


def _measured(
    base: Path, folders: Mapping[str, Path], adapters: Mapping[str, Mapping[str, Any]], data: Path
) -> dict[str, Any]:
    """Return ω(λ) of each adapter on its own inputs, and the matrix of the last adapters on the base."""
    items = {
        task: [Item(row["a"], row["b"]) for row in _rows(data, task, "validation")[:MEASURED]]
        for task in TASKS
    }
    own = {name: items[about["task"]] for name, about in adapters.items()}
    curves = {}
    for hooks in HOOKS:
        curve = submerge.null_space_curve(base, folders, own, hooks=hooks)
        curves[hooks] = {
            "scales": list(curve.scales),
            "values": dict(zip(curve.adapters, curve.values.tolist(), strict=True)),
            "warnings": list(curve.warnings),
        }
    last = max(about["step"] for about in adapters.values())
    final = {name: folders[name] for name, about in adapters.items() if about["step"] == last}
    matrix = submerge.null_space_ratio(base, final, items)
    return {
        "curves": curves,
        "matrix": {
            name: dict(zip(matrix.adapters, row, strict=True))
            for name, row in zip(matrix.data, matrix.matrix.tolist(), strict=True)
        },
        "isotropic": float(matrix.isotropic.nanmean()),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page: accuracies with the curves, and the matrix."""
    lines = [
        "# Null-space ratios of adapters of MiniLM",
        "",
        f"Made by `{results['command']}` on {results['date']}.",
        "",
        f"LoRA of rank {LORA['r']} (alpha {LORA['lora_alpha']}) on query and value, AdamW, {BATCH} pairs a "
        f"step, one seed. Accuracy on {TESTED} validation pairs, ω as a mean over the first {MEASURED}. "
        f"Inputs without structure have {results['isotropic']:.5f}.",
    ]
    for hooks, about in HOOKS.items():
        curve = results["curves"][hooks]
        lines += ["", f"## ω(λ) of each adapter on its own inputs: {about}", ""]
        columns = " | ".join(f"λ = {scale:g}" for scale in curve["scales"])
        lines += [
            f"| task, rate, step | accuracy | {columns} |",
            f"|---|---:|{'---:|' * len(curve['scales'])}",
        ]
        for name, row in curve["values"].items():
            cells = " | ".join(f"{value:.5f}" for value in row)
            lines.append(f"| {name} | {results['adapters'][name]['accuracy']:.3f} | {cells} |")
        lines += ["", *(f"* {warning}" for warning in curve["warnings"])]
    first = next(iter(results["matrix"].values()))
    lines += ["", "## Data × adapter, on the base (λ = 0)", "", f"| inputs | {' | '.join(first)} |"]
    lines += [f"|---|{'---:|' * len(first)}"]
    for name, row in results["matrix"].items():
        lines.append(f"| {name} | {' | '.join(f'{value:.5f}' for value in row.values())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
