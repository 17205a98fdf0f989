"""A LoRA adapter on disk, opened: every tensor accounted for, nothing read yet."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few
from submerge.store.adapter._build import build_parts
from submerge.store.adapter._config import ADAPTER_CONFIG, read_adapter_config
from submerge.store.adapter._parts import Add, Form, LowRankPart, Part, Replace, Rows
from submerge.store.folder import (
    Fetched,
    HubId,
    Tokenizer,
    WeightFiles,
    choose_adapter,
    fetch,
    locate,
    sibling_hint,
    side_files,
    weights_beside,
)
from submerge.store.format import (
    DTYPES,
    FileTable,
    MemorySource,
    Source,
    TensorEntry,
    byte_view,
    load_pickled,
    memory_entry,
    read_header,
)

__all__ = ["Adapter", "is_adapter", "open_adapter"]


@dataclass(frozen=True)
class Adapter:
    """One adapter: what it does to each parameter, by the parameter's name in the model.

    `base` and `base_revision` are what it was trained on, as its configuration says. `notes` tell what
    was recognised. `memory` holds the tensors of a pickled file, whose entries have no file. `pending`
    says that the weights of a Hub id are not downloaded yet: shapes are known, values cannot be read.
    `whole` names what a model under it took over from it as it is, and what therefore is no part any more;
    `names` are the adapter's own names of that model's parameters, and `unfit` the shapes of
    those that it has in another shape, and does not change. `tokenizer` is what of one lies beside it. `form`
    says whose file it is; those of diffusers and kohya have no configuration. `left_out` tells what of the
    files is used by no merge.
    """

    label: str
    path: Path
    revision: str | None
    config: dict[str, Any]
    base: str | None
    base_revision: str | None
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pending: bool = False
    whole: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    unfit: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    form: Form = "peft"
    left_out: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of its factors; 0 if it has none."""
        return max((part.rank for part in self.parts.values() if isinstance(part, LowRankPart)), default=0)

    def dense_only(self, name: str) -> str | None:
        """Return why a part is no low-rank update without the base's values, or None if it is one."""
        part = self.parts[name]
        if isinstance(part, LowRankPart):
            return "DoRA rescales the base's own weights" if part.magnitude is not None else None
        if isinstance(part, Replace):
            return "it was saved whole, as new values"
        if isinstance(part, Rows):
            return "some of its rows were saved, as new values"
        return "it is an update of a bias, which has no factors"

    def factors(self, name: str, table: FileTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (left, right), whose product is the update of a parameter of `LowRankPart`.

        left [m, r] holds the scale, right is [r, n]: the update has the parameter's stored shape, with
        all dimensions after the first as one. Experts give [E, m, r] and [E, r, n]. float32, or float64
        where the file is.
        """
        part = self.parts[name]
        if not isinstance(part, LowRankPart):
            raise ValueError(f"{name} is no low-rank update: {self.dense_only(name)}")
        b, a = self._floats(part.left_entry, table), self._floats(part.right_entry, table)
        if a.dtype != b.dtype:
            a, b = a.double(), b.double()
        if part.experts:
            a = a.reshape(part.experts, part.rank, a.shape[1])
            b = b.reshape(b.shape[0], part.rank, part.experts).permute(2, 0, 1)
            if part.expert is not None:
                a, b = a[part.expert], b[part.expert]
        else:
            a, b = a.flatten(1), b.flatten(1)
        left, right = (a.mT, b.mT) if part.transposed else (b, a)
        left = left[slice(*part.rows)] if part.rows else left
        scale = part.scale
        if part.alpha is not None:
            scale = float(self._floats(part.alpha, table)) / part.rank
        return (left * scale).contiguous(), right.contiguous()

    def magnitude(self, name: str, table: FileTable) -> torch.Tensor | None:
        """Return DoRA's magnitudes [out] of a parameter, or None where there are none."""
        part = self.parts[name]
        entry = part.magnitude if isinstance(part, LowRankPart) else None
        return None if entry is None else self._floats(entry, table).flatten()

    def tensor(self, name: str, table: FileTable) -> torch.Tensor:
        """Return the values of `Replace` and `Rows`, or the update of `Add`, with its scale.

        Floats are float32, or float64 where the file is; anything else stays as it is.
        """
        part = self.parts[name]
        if isinstance(part, LowRankPart):
            raise ValueError(f"{name} is a low-rank update: read its factors")
        values = self._floats(part.entry, table)
        return values * part.scale if isinstance(part, Add) else values

    def source(self, entry: TensorEntry, table: FileTable) -> Source:
        """Return where to read an entry's values by ranges: its file, opened in `table`, or memory."""
        return MemorySource(self.memory[entry.name]) if entry.file is None else table.source(entry)

    def _floats(self, entry: TensorEntry, table: FileTable) -> torch.Tensor:
        values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype].torch)
        self.source(entry, table).read(0, entry.numel, byte_view(values))
        if DTYPES[entry.dtype].kind != "float" or entry.dtype == "F64":
            return values
        return values.float()


def is_adapter(path: Path) -> bool:
    """Return True for a folder that holds an adapter, and not a model with an adapter's configuration."""
    if not (path / ADAPTER_CONFIG).is_file():
        return False
    if any((path / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        return True
    return next(path.glob("*.safetensors"), None) is None


def open_adapter(
    spec: str, *, root: Path | None = None, allow_pickle: bool = False, download: bool = True
) -> Adapter:
    """Return the adapter that `spec` names: a folder with `adapter_config.json`, or `org/name[@revision]`.

    Relative paths start at `root` (default: the current folder). Only headers are read; with
    `download` false not even a Hub id's weights are fetched, where headers can be read without. Raises
    `RequestError` with everything that is wrong with the files, or that is no update of the weights.
    """
    root = Path.cwd() if root is None else root
    place = locate(spec, root)
    if isinstance(place, HubId):
        try:
            found = fetch(
                place.repo, place.revision, allow_pickle=allow_pickle, weights=download, adapter=True
            )
        except RequestError as error:
            near = sibling_hint(spec, root)
            raise RequestError([*error.problems, *([Problem(near, spec)] if near else [])]) from None
        return replace(_open(found.folder, spec, allow_pickle, found), revision=found.commit)
    if not place.is_dir():
        hint = "name the folder that holds it, with its adapter_config.json"
        raise RequestError(Problem("is a file where an adapter's folder is expected", str(place), hint))
    return _open(place, spec, allow_pickle)


def _open(folder: Path, label: str, allow_pickle: bool, fetched: Fetched | None = None) -> Adapter:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise RequestError(Problem("the folder cannot be read", str(folder), "check the permissions"))
    choice = fetched.choice if fetched else None
    choice = choice or choose_adapter(_names(folder), str(folder), allow_pickle=allow_pickle)
    problems: list[Problem] = []
    entries: Collection[TensorEntry] | None = None
    memory: dict[str, torch.Tensor] = {}
    headers = fetched.headers if fetched else {}
    try:
        entries, memory = _entries(folder, choice, headers)
    except RequestError as error:
        problems.extend(error.problems)
    try:
        config = read_adapter_config(folder / ADAPTER_CONFIG)
    except RequestError as error:
        raise RequestError([*error.problems, *problems]) from None
    if entries is None:
        raise RequestError(problems)
    files = side_files(folder)
    keys = {entry.name: entry for entry in entries}
    parts, notes = build_parts(keys, config, str(folder / choice.name))
    base, revision = config.raw.get("base_model_name_or_path"), config.raw.get("revision")
    beside = fetched.beside if fetched and fetched.beside else weights_beside(_names(folder))
    return Adapter(
        label=label,
        path=folder,
        revision=None,
        config=dict(config.raw),
        base=str(base) if base else None,
        base_revision=str(revision) if revision else None,
        parts=parts,
        notes=(*config.notes, *notes),
        files=(folder / choice.name,),
        memory=memory,
        pending=choice.name in headers,
        tokenizer=Tokenizer.among(folder, files.carried, files.links),
        left_out=(f"weights beside it are no part of an adapter, and are left out: {few(beside)}",)
        if beside
        else (),
    )


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.is_dir()] + [
        f"{entry.name}/{ADAPTER_CONFIG}" for entry in folder.iterdir() if (entry / ADAPTER_CONFIG).is_file()
    ]


def _entries(
    folder: Path, choice: WeightFiles, headers: Mapping[str, Mapping[str, TensorEntry]]
) -> tuple[Collection[TensorEntry], dict[str, torch.Tensor]]:
    path = folder / choice.name
    if choice.name in headers:
        return headers[choice.name].values(), {}
    if not choice.pickled:
        return read_header(path).entries.values(), {}
    loaded = load_pickled(path)
    return [memory_entry(name, tensor) for name, tensor in loaded.items()], loaded
