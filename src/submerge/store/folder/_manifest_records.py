"""What `submerge.json` says of one tensor, of one model, and of a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.store.format import DIGEST, DTYPES

__all__ = ["GateRecord", "ModelRecord", "TensorRecord"]

HEX_DIGITS = 32
"""Of a digest."""


@dataclass(frozen=True)
class TensorRecord:
    """What was written of one tensor.

    Attributes:
        dtype: its code in safetensors files.
        shape: its lengths.
        digest: of its bytes.
        file: the weight file that it is in; "" for tensors of a bank, which are all in one.
        treatment: what was done to it, such as `merge`; "" for tensors of a bank.
        block: bytes that were digested at a time, where the digest is that of the blocks' digests.
        note: why the treatment is another than a reader may expect.
        new: whether the base does not store it.
        figures: what the method says of a matrix.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    file: str = ""
    treatment: str = ""
    block: int | None = None
    note: str = ""
    new: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, without what is empty."""
        always = {"dtype": self.dtype, "shape": list(self.shape), DIGEST: self.digest}
        before = {"file": self.file, "treatment": self.treatment}
        after = {"block": self.block, "note": self.note, "new": self.new, "figures": self.figures}
        return {**_present(before), **always, **_present(after)}

    @classmethod
    def from_json(cls, line: Any) -> TensorRecord:
        """Return the record that `to_json` gave; raise `ValueError` or its like for anything else."""
        record = cls(
            dtype=line["dtype"],
            shape=tuple(line["shape"]),
            digest=line[DIGEST],
            file=line.get("file", ""),
            treatment=line.get("treatment", ""),
            block=line.get("block"),
            note=line.get("note", ""),
            new=bool(line.get("new")),
            figures=dict(line.get("figures", {})),
        )
        sound = record.dtype in DTYPES and isinstance(line["shape"], list)
        if not (sound and len(record.digest) == HEX_DIGITS and line.get("block", 1) > 0):
            raise ValueError(f"{line} says of no tensor what it is")
        return record


@dataclass(frozen=True)
class ModelRecord:
    """What was read of one model.

    Attributes:
        model: how the recipe names it.
        revision: the commit of a Hub id.
        adapter: of an adapter, its `revision`, digest and `notes`.
        files: its weight files with their sizes in bytes.
        names: how many of its tensors have other names than in its files.
        read: how many of its tensors were read (`tensors`), and a digest of all their bytes.
        used: of how many output tensors it was part; None for a base that is not itself merged.
        unused: its tensors that have no place in the output.
    """

    model: str
    revision: str | None = None
    adapter: Mapping[str, Any] | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    names: str = ""
    read: Mapping[str, Any] = field(default_factory=dict)
    used: int | None = None
    unused: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, without what is empty."""
        return {
            "model": self.model,
            **_present({"revision": self.revision, "adapter": self.adapter}),
            "files": dict(self.files),
            **_present({"names": self.names}),
            "read": dict(self.read) or {"tensors": 0, DIGEST: ""},
            **({} if self.used is None else {"used": self.used}),
            **_present({"unused": list(self.unused)}),
        }

    @classmethod
    def all_from_json(cls, lines: Any) -> tuple[ModelRecord, ...]:
        """Return the records of models that can be made sense of: no check rests on all of them."""
        listed = lines if isinstance(lines, list) else []
        return tuple(
            cls(
                model=line["model"],
                revision=line.get("revision"),
                adapter=line.get("adapter"),
                files=_mapping(line.get("files")),
                names=line.get("names", ""),
                read=_mapping(line.get("read")),
                used=line.get("used"),
                unused=line.get("unused", ()),
            )
            for line in listed
            if isinstance(line, dict) and isinstance(line.get("model"), str)
        )


@dataclass(frozen=True)
class GateRecord:
    """The gate of a merge: its method, the tasks with what is known of their heads, and its settings."""

    method: str
    tasks: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"method": self.method, "tasks": list(self.tasks), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, line: Any) -> GateRecord:
        """Return the record that `to_json` gave; raise `ValueError` or its like for anything else."""
        tasks = tuple(dict(task) for task in line["tasks"])
        if not tasks or not all(isinstance(task["name"], str) for task in tasks):
            raise ValueError("there is no task, or one without a name")
        return cls(str(line["method"]), tasks, dict(line["settings"]))


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there: neither None nor empty."""
    return {key: value for key, value in values.items() if value}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
