"""The tasks: pairs of texts as prompts that name the task, and the words that answer them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from functools import partial
from pathlib import Path

from benchmarks.replication.rows import Rows, SuiteTask

__all__ = ["KNOWN", "prompt", "words"]

WORDS = {"contradiction": " no", "entailment": " yes", "neutral": " maybe", "not_entailment": " no"}
THREE, TWO = ("contradiction", "entailment", "neutral"), ("entailment", "not_entailment")
LABELS = {"mnli": THREE, "qnli": TWO, "snli": THREE, "rte": TWO, "sick": THREE, "scitail": TWO}
"""Task -> labels, in the order of their numbers."""
TITLES = {"mnli": "MNLI", "qnli": "QNLI", "snli": "SNLI", "rte": "RTE", "sick": "SICK", "scitail": "SciTail"}
PAIR = ("Premise", "Hypothesis")
NAMES = {"qnli": ("Question", "Sentence")}
MOST_WORDS = 64
"""Of a pair: beyond them the end of the longer text is cut off."""


def words(task: str) -> tuple[str, ...]:
    """Return the words that stand for a task's classes."""
    return tuple(WORDS[label] for label in LABELS[task])


def prompt(task: str, first: str, second: str) -> str:
    """Return a pair as a prompt; it names the task, for each draws the line between labels elsewhere."""
    texts = _cut(first.split(), second.split())
    said = " ".join(f"{name}: {text}" for name, text in zip(NAMES.get(task, PAIR), texts, strict=True))
    return f"{TITLES[task]}. {said} Answer:"


def _cut(first: list[str], second: list[str]) -> tuple[str, str]:
    over = max(0, len(first) + len(second) - MOST_WORDS)
    longer = max(first, second, key=len)
    del longer[len(longer) - over :]
    return " ".join(first), " ".join(second)


def _read(root: Path, task: str) -> tuple[Rows, Rows]:
    train, validation, test = (_part(root, task, name) for name in ("train", "validation", "test"))
    return [*train, *validation], test


def _part(root: Path, task: str, name: str) -> Rows:
    with gzip.open(root / "text" / task / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [(prompt(task, entry["a"], entry["b"]), None, entry["y"]) for entry in entries]


def _sick(root: Path) -> tuple[Rows, Rows]:
    def part(name: str) -> Rows:
        text = gzip.decompress((root / "text" / "sick" / f"SICK_{name}.txt.gz").read_bytes()).decode()
        entries = csv.DictReader(io.StringIO(text.lstrip("\ufeff")), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            (
                prompt("sick", entry["sentence_A"], entry["sentence_B"]),
                None,
                entry["entailment_judgment"].strip().lower(),
            )
            for entry in entries
        ]

    return [*part("train"), *part("trial")], part("test_annotated")


KNOWN = {
    task: SuiteTask(task, _sick if task == "sick" else partial(_read, task=task))
    for task in ("mnli", "qnli", "snli", "rte", "sick", "scitail")
}
