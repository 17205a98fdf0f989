"""What the folder of a composed model holds for its gate: specialists' modules, and streams' parameters.

The parameters of stream n are, by what the bank holds of a parameter T of the language model:

    W_n = values                      where the stream has a parameter of its own
    W_n = W_0 + left · right          else, without factors W_0
    W_0 = base                        the base's values, where the bank has them
    W_0 = W_text − left · right       else, by the factors of the merged update, if there are any
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from submerge.errors import Problem, RequestError
from submerge.serving._folder import Folder, bank_names, gate_manifest
from submerge.store import BANK, MODALITIES, SHARED_PARTS

__all__ = ["ModalityFolder", "Read", "StreamParts", "open_modality_folder"]

Read: TypeAlias = Callable[[str], torch.Tensor]
"""From the name of a tensor in the bank to the tensor."""
FACTORS = ("left", "right")


@dataclass(frozen=True)
class StreamParts:
    """What the bank holds of one parameter: names of tensors there, by what each is to which stream.

    Attributes:
        values: of streams with a parameter of their own.
        factors: of streams' updates, `left` and `right`, which count from the base's values.
        base: the base's values.
        merged: the factors of the merged update.
    """

    values: dict[int, str] = field(default_factory=dict)
    factors: dict[int, dict[str, str]] = field(default_factory=dict)
    base: list[str] = field(default_factory=list)
    merged: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether there is no left factor without a right one."""
        return all(set(pair) == set(FACTORS) for pair in (*self.factors.values(), self.merged) if pair)


@dataclass(frozen=True)
class ModalityFolder(Folder):
    """The folder of a composed model: a task is a specialist of one modality.

    `modules` are the own tensors of each specialist, from their names in its files to those in the bank;
    `parameters` are those of the language model that differ from stream to stream. `owners` has for each
    specialist the number of the one whose parts it has: its own, or that of an earlier one which shares them.
    """

    modules: tuple[dict[str, str], ...] = ()
    parameters: dict[str, StreamParts] = field(default_factory=dict)
    owners: tuple[int, ...] = ()

    @property
    def updated(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    @property
    def streams(self) -> tuple[tuple[int, ...], ...]:
        """The members of each stream: its owner's number n, and K that takes the merged update away again."""
        count = len(self.tasks)
        is_merged = any(parts.merged for parts in self.parameters.values())
        return tuple((n, count) if is_merged else (n,) for n in self.owners)

    def files(self, number: int) -> Path:
        """Return the folder of a specialist's configuration and processor."""
        return self.path / MODALITIES / str(self.tasks[number]["name"])

    def config(self, number: int) -> bytes:
        """Return a specialist's configuration, as it is written; empty where there is none."""
        file = self.files(number) / "config.json"
        return file.read_bytes() if file.is_file() else b""

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Read tensors of the bank inside, each when it is asked for."""
        with safe_open(self.path / BANK, framework="pt") as file:
            yield file.get_tensor


def open_modality_folder(path: Path) -> ModalityFolder:
    """Return what the folder of a composed model holds, without the tensors of its bank.

    Raises `RequestError` where it has no gate of this kind, or something is damaged.
    """
    manifest, gate = gate_manifest(path)
    for task in gate.tasks:
        if not isinstance(task.get("placeholder_id"), int):
            what = f"the placeholder of {task['name']} is not said"
            raise RequestError(Problem(what, str(path), "merge again"))
    modules: tuple[dict[str, str], ...] = tuple({} for _ in gate.tasks)
    owners = _owners(path, gate.tasks)
    folder = ModalityFolder(path, gate.tasks, gate.settings, gate.method, modules=modules, owners=owners)
    for name in bank_names(path, manifest):
        _sort_in(folder, name)
    for name, parts in folder.parameters.items():
        if not parts.is_complete:
            raise RequestError(Problem(f"{name} lacks some of its factors", str(path / BANK), "merge again"))
    return folder


def _sort_in(folder: ModalityFolder, name: str) -> None:
    """Put the name of a tensor of the bank where it belongs."""
    kind, _, rest = name.partition(".")
    if kind in ("base", "merged"):
        if kind == "base":
            _parts(folder.parameters, rest).base.append(name)
        else:
            tensor, _, part = rest.rpartition(".")
            _parts(folder.parameters, tensor).merged[part] = name
        return
    number, _, rest = rest.partition(".")
    if kind not in ("modules", "streams") or not number.isdecimal() or int(number) >= len(folder.tasks):
        what = f"{name!r} is no tensor of the bank of a composed model"
        raise RequestError(Problem(what, str(folder.path / BANK), "merge again"))
    if kind == "modules":
        folder.modules[int(number)][rest] = name
        return
    tensor, _, part = rest.rpartition(".")
    parts = _parts(folder.parameters, tensor)
    if part == "values":
        parts.values[int(number)] = name
    else:
        parts.factors.setdefault(int(number), {})[part] = name


def _owners(path: Path, tasks: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return for each specialist the number of the one whose parts it has."""
    names = [task["name"] for task in tasks]
    owners: list[int] = []
    for number, task in enumerate(tasks):
        shared = task.get(SHARED_PARTS)
        if shared is not None and shared not in names[:number]:
            what = f"{task['name']} has the parts of {shared!r}, of which there are none before it"
            raise RequestError(Problem(what, str(path), "merge again"))
        owners.append(number if shared is None else owners[names.index(shared)])
    return tuple(owners)


def _parts(parameters: dict[str, Any], tensor: str) -> StreamParts:
    parts: StreamParts = parameters.setdefault(tensor, StreamParts())
    return parts
