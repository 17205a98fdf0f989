"""The merges of the suite: how the LoRAs are merged, and what becomes of the projectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.replication.continual.hide import HIDE
from benchmarks.replication.methods import AVERAGE, MANY, MANY_DEFAULT, ROWS, Merge

__all__ = [
    "CONTINUAL_ROWS",
    "DISCRIMINANT",
    "FOLLOWED",
    "MERGED",
    "MIXED",
    "NSC",
    "REFERENCES",
    "SERVED",
    "START",
    "TOLD",
    "ContinualRow",
    "rows",
]

REFERENCES = ("base", "individual", "sequential", "ewc", "joint")
MERGED, MIXED = "merged", "mixed"
"""Projectors: merged as the rest is, or kept, and their outputs mixed by the image (CPM)."""
MIX = {"key": "both"}
"""Of every mixture: the bank has prototypes of images and of questions, and is served by either."""
SERVED: Mapping[str, Mapping[str, Any]] = {
    "image": {"key": "image", "temperature": 0.1},
    "uncentred": {"key": "image", "centred": False, "temperature": 0.03},
    "question": {"key": "both", "temperature": 0.1},
}
"""How a mixture is served: by the image, so that it is tuned; without centring; by the question, too.

Of prototypes, all of them.
"""
DISCRIMINANT: Mapping[str, Mapping[str, Any]] = {
    "discriminant": {"key": "image", "score": "discriminant"},
    "discriminant_question": {"key": "both", "score": "discriminant"},
}
"""The same by a linear discriminant of the tasks, with its defaults; of results of their own."""


@dataclass(frozen=True)
class ContinualRow:
    """A merge of the LoRAs, and what becomes of the projectors; `mix` are settings of a mixture.

    With `state`, how a state is begun to which one task after another is added, and which is exported; else a
    recipe is merged. `served` are the ways of `SERVED` that a mixture is tested in.
    """

    merge: Merge
    projectors: str = MERGED
    mix: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    served: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return how results are called."""
        return f"{self.merge.name}-{self.projectors}"

    @property
    def compared(self) -> str:
        """Return by what images are compared: the settings of the mixture that decide about prototypes."""
        settings = {"pooling": "mean", "key": "image", "prototypes": 1} | dict(self.mix)
        return "-".join(str(settings[name]) for name in ("pooling", "key", "prototypes"))

    def recipe(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        scale: float | None,
        *,
        inputs: Mapping[str, Path] | None = None,
        prototypes: Path | None = None,
    ) -> dict[str, Any]:
        """Return the recipe of a merge of these tasks.

        To mix projectors it needs `inputs`, task -> file of unlabelled inputs, or the folder of `prototypes`
        that another merge made of them. A method that looks at inputs itself needs them besides.
        """
        if self.projectors == MERGED:
            return self.merge.recipe(base, list(adapters.values()), scale, "lora")
        merge = replace(self.merge, form="checkpoint")
        recipe = merge.recipe(base, list(adapters.values()), scale, "lora")
        for entry, task in zip(recipe["models"], adapters, strict=True):
            entry["name"] = task
            if inputs:
                entry["data"] = str(inputs[task])
        recipe["projectors"] = {"mix": "prototypes", **self.mix}
        return recipe | ({"prototypes": str(prototypes)} if prototypes else {})

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker."""
        state = None if self.state is None else dict(self.state)
        served = {name: dict(SERVED[name]) for name in self.served}
        mixed = {"projectors": self.projectors, "mix": dict(self.mix), "served": served}
        return self.merge.facts() | mixed | {"state": state}


NSC = Merge("nsc", kinds=("lora",))
"""Of coefficients that are learned from the tasks' unlabelled inputs."""


def _method(name: str) -> Merge:
    return next(row for row in (AVERAGE, *ROWS) if row.name == name)


def _begun(method: Merge) -> Mapping[str, Any] | None:
    return {"statistics": "full"} if method in (MANY, MANY_DEFAULT) else None


def _ways(method: Merge) -> tuple[str, ...]:
    """Return all ways to serve for MAny and CPM alone; others are told the task, or are not."""
    return tuple(SERVED) if method in (MANY, MANY_DEFAULT, AVERAGE) else ("image",)


METHODS = (
    MANY,
    *map(_method, ("average", "task_arithmetic", "ties", "knots_ties", "tsv_m", "wudi", "ssam")),
)
FOLLOWED = ("many-mixed", "many_default-mixed", "average-mixed", "task_arithmetic-merged", "many-merged")
"""Rows whose merges of the first tasks are scored, too, for their forgetting."""
TOLD = "told"
"""What results call the scores of a mixture that is told each question's task."""
START = {
    "task_arithmetic": 0.3,
    "ties": 0.8,
    "knots_ties": 1.0,
    "tsv_m": 0.6,
    "wudi": 1.0,
    "ssam": 0.45,
    "many": 1.0,
    "hide": 0.3,
}
"""Method -> where the search for its scale begins."""


CONTINUAL_ROWS = (
    *(
        ContinualRow(method, MIXED, MIX, _begun(method), _ways(method))
        for method in (*METHODS, MANY_DEFAULT, HIDE, NSC)
    ),
    *(ContinualRow(method, MERGED, state=_begun(method)) for method in METHODS),
)


def rows(names: Sequence[str] | None) -> list[ContinualRow]:
    """Return the rows that are asked for by their names, or by their methods'; all where nothing is said."""
    return [row for row in CONTINUAL_ROWS if names is None or {row.name, row.merge.name} & set(names)]
