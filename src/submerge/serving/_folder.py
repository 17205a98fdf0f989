"""What a merged folder holds for its gate, read and checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from submerge.algebra import Triplets
from submerge.errors import Problem, RequestError, few
from submerge.store import BANK, MANIFEST, GateRecord, Manifest, is_adapter, read_header, reading_manifest

__all__ = ["Folder", "bank_names", "copy_beside", "copy_folder", "gate_manifest", "open_folder"]

ROUNDING = 1e-5
"""The share of an update's energy that rounding loses at most."""


@dataclass(frozen=True)
class Folder:
    """The tasks with what is told of them, the gate's settings, and the bank by tensor and task.

    `method` is that whose gate it is. Updates are `factors` or `dense`. `fixed` names, for tensors where that
    is not all, the tasks that the checkpoint is a merge of. Of `tables` a set of tasks gets the mean, and
    `merged` is what the checkpoint adds to the base's values of them. `low_rank` says that most matrices have
    complete updates at ranks below 1/T of theirs, as with adapters. `calibration` is what the manifest says
    of the file of what inputs of the tasks showed. `loading` are arguments of transformers' `from_pretrained`
    for every part of the model.

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from pathlib import Path
        >>> from submerge.serving import open_folder
        >>> folder = open_folder(Path("served"))
        >>> folder.names, len(folder.updated) > 0
        (('chat', 'code'), True)
    """

    path: Path
    tasks: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    method: str = "mass"
    factors: dict[str, dict[int, Triplets]] = field(default_factory=dict)
    dense: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    heads: tuple[dict[str, torch.Tensor], ...] = ()
    fixed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()
    merged: dict[str, torch.Tensor] = field(default_factory=dict)
    low_rank: bool = False
    calibration: Mapping[str, Any] | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(task["name"] for task in self.tasks)

    @property
    def updated(self) -> tuple[str, ...]:
        """The tensors that tasks change."""
        return (*self.factors, *self.dense)


def gate_manifest(path: Path) -> tuple[Manifest, GateRecord]:
    """Return the manifest of a folder and its gate; raise `RequestError` where there is none."""
    adapter = is_adapter(path)
    without = "this merge keeps no gate: it is " + ("an adapter" if adapter else "a plain checkpoint")
    problem = Problem(without, str(path), f"load it with {'PEFT' if adapter else 'transformers'}")
    if adapter and not (path / MANIFEST).exists():  # which adapters have with a gate alone, or with weights
        raise RequestError(problem)
    manifest = Manifest.read(path)
    if manifest.gate is None or manifest.bank is None:
        raise RequestError(problem)
    return manifest, manifest.gate


def open_folder(path: Path) -> Folder:
    """Return what the folder holds; raise `RequestError` where it has no gate, or something is damaged.

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from pathlib import Path
        >>> from submerge.serving import open_folder
        >>> open_folder(Path("served")).method
        'mass'
    """
    manifest, gate = gate_manifest(path)
    tasks, settings, method = gate.tasks, gate.settings, gate.method
    with reading_manifest(path):
        fixed = {name: tuple(members) for name, members in manifest.figures("fixed").items()}
        tables = frozenset(name for name, table in manifest.figures("table").items() if table)
        energies = {name: float(share) for name, share in manifest.figures("energy").items()}
    heads: tuple[dict[str, torch.Tensor], ...] = tuple({} for _ in tasks)
    folder = Folder(path, tasks, settings, method, heads=heads, fixed=fixed, tables=tables)
    if names := bank_names(path, manifest):
        _read_bank(folder, path / BANK, names)
    return replace(folder, low_rank=_is_low_rank(folder, energies), calibration=manifest.calibration)


def _is_low_rank(folder: Folder, energies: Mapping[str, float]) -> bool:
    """Return whether most matrices have complete updates of ranks that the method need not have cut."""
    low = [
        energies.get(name, 0) >= 1 - ROUNDING
        and all(_is_low(part, len(folder.tasks)) for part in parts.values())
        for name, parts in folder.factors.items()
    ]
    return 2 * sum(low) > len(low)


def _is_low(part: Triplets, tasks: int) -> bool:
    """Return whether the rank is below that to which the method cuts an update."""
    return part.rank < min(part.left.shape[0], part.right.shape[1]) // tasks


def bank_names(path: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the bank's tensors, after comparing it with the manifest; none without a bank."""
    shapes = {name: record.shape for name, record in (manifest.bank or {}).items()}
    if not shapes:
        return ()
    entries = read_header(path / BANK).entries
    wrong = [n for n, shape in shapes.items() if n not in entries or entries[n].shape != shape]
    wrong += [n for n in entries if n not in shapes]
    if wrong:
        what = f"the bank is not what {MANIFEST} says: {few(wrong)}"
        raise RequestError(Problem(what, str(path / BANK), "copy the whole folder again, or merge again"))
    return tuple(entries)


def copy_folder(source: Path, folder: Path) -> None:
    """Copy all of a merged folder, if it is not where the copy is to be."""
    if _is_elsewhere(source, folder):
        shutil.copytree(source, folder, dirs_exist_ok=True)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy all of a merged folder but the checkpoint: bank, manifest, tokenizer, processor, folders in it."""
    if not _is_elsewhere(source, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name, dirs_exist_ok=True)
        elif file.name in (BANK, MANIFEST) or not ((folder / file.name).exists() or _is_weights(file.name)):
            shutil.copy2(file, folder / file.name)


def _is_elsewhere(source: Path, folder: Path) -> bool:
    """Return whether a copy has other files than its source; raise `RequestError` where that is gone."""
    if not source.is_dir():
        what = "the folder that the model was loaded from is gone: bank and processor would be copied from it"
        hint = "put it back where it was, or load the model from where it is now"
        raise RequestError(Problem(what, str(source), hint))
    return folder.resolve() != source.resolve()


def _is_weights(name: str) -> bool:
    """Return whether a file is one of a checkpoint's weights, or their index."""
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _read_bank(folder: Folder, path: Path, names: Iterable[str]) -> None:
    """Fill the folder's mappings from the bank."""
    parts: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            if name.startswith("merged."):
                folder.merged[name.removeprefix("merged.")] = tensor
                continue
            kind, number, rest = _parsed(name, len(folder.tasks), path)
            if kind == "heads":
                folder.heads[number][rest] = tensor
                continue
            key, _, last = rest.rpartition(".")
            if last == "whole":
                folder.dense.setdefault(key, {})[number] = tensor
            else:
                parts.setdefault((key, number), {})[last] = tensor
    for (key, number), part in parts.items():
        if set(part) != {"left", "values", "right"}:
            what = f"tasks.{number}.{key} lacks some of its factors"
            raise RequestError(Problem(what, str(path), "merge again"))
        folder.factors.setdefault(key, {})[number] = Triplets(**part)


def _parsed(name: str, count: int, path: Path) -> tuple[str, int, str]:
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if kind not in ("tasks", "heads") or not number.isdecimal() or int(number) >= count or not rest:
        raise RequestError(Problem(f"{name!r} is no tensor of a bank", str(path), "merge again"))
    return kind, int(number), rest
