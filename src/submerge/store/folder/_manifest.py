"""`submerge.json`: what a merge read, did and wrote, as one structure for those who write and who read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.folder._manifest_records import GateRecord, ModelRecord, TensorRecord
from submerge.store.format import BANK

__all__ = ["MANIFEST", "MODALITIES", "MODALITY_GATE", "SHARED_PARTS", "Manifest", "reading_manifest"]

MANIFEST = "submerge.json"
MODALITIES = "modalities"
"""The folder beside it that has one for each modality of a composed model."""
MODALITY_GATE = "modality"
"""What it calls the gate of a composed model: a token's modality chooses its parameters."""
SHARED_PARTS = "parts_of"
"""Where it names, of a specialist of such a model, the one before it whose modules and stream it has."""


@dataclass(frozen=True)
class Manifest:
    """The content of `submerge.json`: the same for every run of the same merge.

    Attributes:
        version: of Submerge.
        recipe: as it was understood; `submerge merge` accepts it again.
        models: what was read.
        warnings: as they were printed.
        nonfinite: for a tensor, how many values are NaN or Inf in each model and in the output.
        differs: for a tensor that was copied, the models whose values are other than the copy's.
        tensors: what was written, by name.
        beyond_rows: tokens that the base's embedding has no rows for, as it was published.
        token_rows: how many rows the tables have, where they are other rows than the base's.
        gate: of a method that has one.
        bank: the tensors of the gate's bank, by name; None without a gate.
        coefficients: the file beside it that has the merge's coefficients, and a digest of its numbers.
        calibration: the file beside it that a router was calibrated by, a digest of it, and how many inputs
            there were of each task.
        moments: the files of second moments that were merged by, with a digest of each.
        modules: of an adapter, what was done to each of its modules; None for a checkpoint.

    Examples:
        >>> import submerge
        >>> from submerge.store import Manifest
        >>> report = submerge.merge("recipe.yaml", "merged")
        >>> manifest = Manifest.read("merged")
        >>> manifest.base, manifest.tensors["model.norm.weight"].treatment
        ('base', 'merge')
    """

    version: str
    recipe: Mapping[str, Any]
    models: Sequence[ModelRecord]
    warnings: Sequence[str]
    nonfinite: Mapping[str, Mapping[str, int]]
    differs: Mapping[str, Sequence[str]]
    tensors: Mapping[str, TensorRecord]
    beyond_rows: Sequence[str] = ()
    token_rows: int | None = None
    gate: GateRecord | None = None
    bank: Mapping[str, TensorRecord] | None = None
    coefficients: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    moments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def base(self) -> str | None:
        """The recipe's base, if it names one."""
        return self.recipe.get("base_model")

    @property
    def stacked(self) -> bool:
        """Whether the output's layers are stacked from those of several models, or from some of them."""
        return "slices" in self.recipe or "modules" in self.recipe

    @property
    def is_mixture(self) -> bool:
        """Whether the output is a mixture of experts: it has the feed-forward blocks of several models."""
        return "experts" in self.recipe

    @property
    def is_adapter(self) -> bool:
        """Whether the folder is an adapter's."""
        output = self.recipe.get("output")
        return isinstance(output, dict) and output.get("as") == "adapter"

    def figures(self, key: str) -> dict[str, Any]:
        """Return one of the method's figures for each tensor that has it."""
        return {name: t.figures[key] for name, t in self.tensors.items() if key in t.figures}

    @property
    def text(self) -> str:
        """The bytes of the file, as text."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        content: dict[str, Any] = {
            "submerge": self.version,
            "recipe": self.recipe,
            "models": [model.to_json() for model in self.models],
            "warnings": list(self.warnings),
            "nonfinite": self.nonfinite,
            "differs": self.differs,
            **({"beyond_rows": list(self.beyond_rows)} if self.beyond_rows else {}),
            **({} if self.token_rows is None else {"token_rows": self.token_rows}),
            "tensors": _lines(self.tensors),
        }
        if self.gate is not None:
            content["gate"] = self.gate.to_json()
            content["bank"] = {"file": BANK, "tensors": _lines(self.bank or {})}
        if self.coefficients is not None:
            content["coefficients"] = dict(self.coefficients)
        if self.calibration is not None:
            content["calibration"] = dict(self.calibration)
        if self.moments:
            content["moments"] = dict(self.moments)
        if self.modules is not None:
            content["modules"] = self.modules
        return content

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Return what `to_json` gave; raise `ValueError` or its like where that is damaged."""
        if not isinstance(content["recipe"], dict) or not isinstance(content.get("beyond_rows", []), list):
            raise ValueError("the recipe or the list of tokens is something else")
        gate = content.get("gate")
        return cls(
            version=content.get("submerge", ""),
            recipe=content["recipe"],
            models=ModelRecord.all_from_json(content.get("models")),
            warnings=content.get("warnings", ()),
            nonfinite=content.get("nonfinite", {}),
            differs=content.get("differs", {}),
            tensors=_records(content["tensors"]),
            beyond_rows=content.get("beyond_rows", ()),
            token_rows=content.get("token_rows"),
            gate=None if gate is None else GateRecord.from_json(gate),
            bank=None if gate is None else _records(content["bank"]["tensors"]),
            coefficients=content.get("coefficients"),
            calibration=content.get("calibration"),
            moments=content.get("moments", {}),
            modules=content.get("modules"),
        )

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Return the manifest of a folder that a merge wrote.

        Raises `RequestError` where there is none, or it is damaged.
        """
        folder = Path(folder)
        with reading_manifest(folder):
            return cls.from_json(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


@contextmanager
def reading_manifest(folder: Path) -> Iterator[None]:
    """Raise `RequestError` where the body finds the folder's manifest missing, or other than it should be."""
    try:
        yield
    except OSError as error:
        hint = "name a folder that `submerge merge` made"
        what = f"there is no {MANIFEST} ({error.strerror})"
        if not folder.is_dir():
            what = f"there is no {MANIFEST}, for this is {'a file' if folder.exists() else 'not here'}"
        raise RequestError(Problem(what, str(folder), hint)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RequestError(Problem("the file is damaged", str(folder / MANIFEST), "merge again")) from error


def _lines(records: Mapping[str, TensorRecord]) -> dict[str, dict[str, Any]]:
    return {name: record.to_json() for name, record in records.items()}


def _records(lines: Any) -> dict[str, TensorRecord]:
    return {name: TensorRecord.from_json(line) for name, line in lines.items()}
