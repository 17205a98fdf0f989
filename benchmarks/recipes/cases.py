"""The recipes that are measured: one file for both tools, and what each tool calls it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.console import Say
from benchmarks.recipes import subjects
from benchmarks.speed.models import BASE

__all__ = ["CASES", "RecipeCase"]

Folders = Mapping[str, str]
Document = dict[str, Any]
BFLOAT16 = {"dtype": "bfloat16"}


@dataclass(frozen=True)
class RecipeCase:
    """One recipe, as it is measured.

    Attributes:
        title: for people.
        models: makes the models in a folder, and returns name -> folder.
        documents: those of the recipe's file, from the models' folders.
        theirs: mergekit's program.
        ours: the command of `submerge`.
        options: mergekit's, besides those of every program; `PARTS` is a folder for results on the way.
    """

    title: str
    models: Callable[[Path, Say], Mapping[str, Path]]
    documents: Callable[[Folders], Sequence[Document]]
    theirs: str = "mergekit-yaml"
    ours: str = "merge"
    options: tuple[str, ...] = ()

    def write(self, path: Path, models: Mapping[str, Path]) -> None:
        """Write the recipe with absolute paths."""
        folders = {name: str(folder.resolve()) for name, folder in models.items()}
        path.write_text(yaml.safe_dump_all(self.documents(folders), sort_keys=False))


def _stack(at: Folders) -> list[Document]:
    """120 layers of two models of 80: runs of 20, which begin 10 layers further each time."""
    runs = [(at[BASE if number % 2 == 0 else "a"], 10 * number) for number in range(6)]
    slices = [{"sources": [{"model": model, "layer_range": [first, first + 20]}]} for model, first in runs]
    return [{"slices": slices, "merge_method": "passthrough", **BFLOAT16}]


def _listed(weight: float, *models: str, **more: float) -> list[Document]:
    return [{"model": model, "parameters": {"weight": weight, **more}} for model in models]


def _five(at: Folders) -> list[Document]:
    """Five documents: two of one pass, one that trims, an arc, and a mean of what these give."""
    return [
        {"name": "soup", "merge_method": "linear", "models": _listed(0.5, at["a"], at["b"]), **BFLOAT16},
        {
            "name": "moved",
            "merge_method": "task_arithmetic",
            "base_model": at[BASE],
            "models": _listed(0.7, at["c"]),
            **BFLOAT16,
        },
        {
            "name": "arc",
            "merge_method": "slerp",
            "base_model": "soup",
            "models": [{"model": "soup"}, {"model": "moved"}],
            "parameters": {"t": 0.4},
            **BFLOAT16,
        },
        {
            "name": "trimmed",
            "merge_method": "ties",
            "base_model": at[BASE],
            "models": _listed(0.5, "soup", at["c"], density=0.5),
            **BFLOAT16,
        },
        {"merge_method": "linear", "models": _listed(0.5, "arc", "trimmed"), **BFLOAT16},
    ]


def _mixture(at: Folders) -> list[Document]:
    """Four experts, whose routers come from embeddings of a prompt each."""
    experts = [
        {"source_model": at[name], "positive_prompts": [f"word{100 * i} word{100 * i + 7}"]}
        for i, name in enumerate("abcd")
    ]
    architecture = {"architecture": "mixtral", "experts_per_token": 2}
    return [
        {"base_model": at[BASE], "gate_mode": "cheap_embed", **architecture, **BFLOAT16, "experts": experts}
    ]


def _union(at: Folders) -> list[Document]:
    """A mean over the tokens of both models."""
    models = _listed(0.5, at["small"], at["large"])
    return [{"merge_method": "linear", "models": models, "tokenizer": {"source": "union"}, **BFLOAT16}]


CASES = {
    "stack": RecipeCase("120 layers of two models of 80", subjects.stacked, _stack),
    "documents": RecipeCase(
        "five documents, four models",
        subjects.documents,
        _five,
        theirs="mergekit-multi",
        options=("-I", "PARTS"),
    ),
    "mixture": RecipeCase(
        "a Mixtral of four experts", subjects.experts, _mixture, theirs="mergekit-moe", ours="moe"
    ),
    "vocabularies": RecipeCase("the union of two vocabularies", subjects.vocabularies, _union),
}
"""Name -> the recipe."""
