"""Ways to serve all tasks as one model when nobody names the task: a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from submerge.methods.mass import PRESETS

__all__ = ["ROWS", "Served"]


@dataclass(frozen=True)
class Served:
    """A row: what serves, the gate's settings, and what the caller knows of an input.

    `by` is "mass", "fixed" (MASS's plain checkpoint, all heads compete), "smile", "lda" (a discriminant on
    base features of one layer, trained on inputs of each task, names the task), "inputs" (MASS, whose
    router was calibrated by so many inputs of each task), or "together" (by so many of each, of which nobody
    says whose they are). With `heads` "router" the head is the first
    chosen task's, with "max" that of the largest logit among the chosen tasks. With `head_evidence`
    the log-evidence of all heads on the base's features counts, too. With `form` it is known which tasks take
    pairs of texts, with `group` that so many inputs in a row are of one task. With `wide` the first two
    blocks have twice the rank, for they are all that a single pass routes by.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    by: str = "mass"
    heads: str = "router"
    head_evidence: bool = False
    form: bool = False
    wide: bool = False
    group: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether one task runs for each input, so that its answer is that of the named task."""
        two = self.settings.get("passes", "two") == "two" and self.settings.get("select", "top1") == "top1"
        return self.by in ("lda", "inputs", "together") or (self.by == "mass" and two)

    def facts(self) -> dict[str, Any]:
        """Return what decides about the result, for a marker, under the keys that caches have."""
        facts = {**vars(self), "settings": dict(self.settings), "options": dict(self.options)}
        return facts | {"heard": facts.pop("head_evidence")}


def _paper(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**PRESETS["paper"], **changes}.items() if key != "heads"}


_BASE = {"passes": "two", "first_pass": "base"}
_TWO = {**_BASE, "score": "residual"}
_AUTO = {**_BASE, "score": "auto"}
_NULL_SPACE = {**_BASE, "score": "null_space"}
_ONCE = {"passes": "one", "score": "gaussian"}

_NEAREST = {"inputs": 32, "shrinkage": 1.0}

ROWS = (
    Served("fixed", "fixed merge, all heads", {"first_pass": "merged"}, by="fixed", heads="max"),
    Served("smile", "SMILE (rank 16, gate 4)", by="smile", options={"rank": 16, "gate": 4}),
    Served("paper", "MASS, the paper's preset", _paper(), heads="max"),
    Served("paper_first", "the same, head of the router's first", _paper()),
    Served("layer", "one layer, top-1", _paper(select="top1")),
    Served("on_merge", "all layers, first pass on the merge", {**_TWO, "first_pass": "merged"}),
    Served("residual", "all layers", _TWO),
    Served("gaussian", "all layers, Gaussian", {**_BASE, "score": "gaussian"}),
    Served("whitened", "all layers, whitened", {**_BASE, "score": "whitened"}),
    Served("leading", "all layers, trailing energy", {**_BASE, "score": "leading"}),
    Served("null_space", "all layers, null-space ratio", _NULL_SPACE),
    Served("several", "all layers, up to 3 tasks", {**_TWO, "select": "threshold"}),
    Served("default", "**default**: all layers, heads heard", _AUTO, head_evidence=True),
    Served("null_space_heads", "all layers, null-space ratio, heads heard", _NULL_SPACE, head_evidence=True),
    Served("noise", "default, scores count from noise", {**_AUTO, "reference": "noise"}, head_evidence=True),
    Served("form", "default, form known", _AUTO, head_evidence=True, form=True),
    Served("group", "default, groups of 4", _AUTO, head_evidence=True, group=4),
    Served("one_narrow", "one pass, Gaussian", _ONCE),
    Served("one", "one pass, Gaussian, twice the rank in the first blocks", _ONCE, wide=True),
    Served("one_form", "one pass, form known", _ONCE, wide=True, form=True),
    Served("one_group", "one pass, groups of 4", _ONCE, wide=True, group=4),
    *(
        Served(f"inputs_{n}", f"default, {n} inputs a task", _AUTO, "inputs", options={"inputs": n})
        for n in (8, 32, 150)
    ),
    *(
        Served(
            f"together_{n}",
            f"default, {n} inputs a task, not sorted",
            _AUTO,
            "together",
            head_evidence=True,
            options={"inputs": n},
        )
        for n in (1, 4, 32)
    ),
    Served("inputs_group", "32 inputs a task, groups of 4", _AUTO, "inputs", group=4, options={"inputs": 32}),
    Served("prototypes", "32 inputs a task, nearest mean", _AUTO, "inputs", options=_NEAREST),
    Served("lda", "router trained on 150 labels a task", by="lda", options={"shots": 150}),
)
"""The last one is a ceiling, for it needs data."""
