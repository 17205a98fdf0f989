"""Problems of single tensors, told once for all tensors that have the same one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors._naming import missing_tensors
from submerge.errors import Problem, few

__all__ = ["Finding", "Findings"]


class Finding(NamedTuple):
    """One problem of one tensor; `shown` is how the tensor is named in it."""

    what: str
    where: str
    hint: str
    shown: str


@dataclass
class Findings:
    """Problems by what they say, so that one in 300 tensors is one line, and missing tensors by model."""

    tensors: defaultdict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    missing: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, finding: Finding) -> None:
        """Note one problem of one tensor."""
        self.tensors[finding.what, finding.where, finding.hint].append(finding.shown)

    def add_missing(self, position: int, name: str) -> None:
        """Note that a model lacks a tensor that it must have."""
        self.missing[position].append(name)

    def problems(self, inputs: Inputs) -> list[Problem]:
        """Return one problem for each kind, naming the first tensors and counting the rest."""
        reference = inputs.reference_model
        return [
            *(missing_tensors(inputs.models[i], reference, names) for i, names in self.missing.items()),
            *(
                Problem(f"{what}: {few(names)}", where, hint)
                for (what, where, hint), names in self.tensors.items()
            ),
        ]
