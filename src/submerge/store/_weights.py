"""The tensors of a checkpoint's weight files, and all that is wrong with those files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from submerge.errors import Problem, RequestError, few
from submerge.store.folder import PICKLE_SUFFIXES, HoldsAdapterError, read_index
from submerge.store.format import InMemory, TensorEntry, load_pickled, memory_entry, read_header

__all__ = ["WeightReader"]

T = TypeVar("T")
_UNLIKE = "index and shards are not of one model: download both again, or save the model anew"


@dataclass
class WeightReader:
    """Reads weight files one by one: their tensors so far, and what is wrong with them.

    `headers` has, by file, the tensors of files that were not downloaded.
    """

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    memory: dict[str, InMemory] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    headers: Mapping[Path, Mapping[str, TensorEntry]] = field(default_factory=dict)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Return the action's result, or None after noting its problems."""
        try:
            return action()
        except HoldsAdapterError:  # this is no checkpoint that is wrong
            raise
        except RequestError as error:
            self.problems.extend(error.problems)
            return None

    def read(self, path: Path, *, pickled: bool) -> Mapping[str, TensorEntry] | None:
        """Return the tensors of one weight file, or None after noting why it cannot be read."""
        if path in self.headers:
            return self.headers[path]
        if not pickled:
            header = self.attempt(lambda: read_header(path))
            return None if header is None else header.entries
        loaded = self.attempt(lambda: load_pickled(path))
        if loaded is None:
            return None
        self.memory.update(loaded)
        return {name: memory_entry(name, tensor) for name, tensor in loaded.items()}

    def exists(self, path: Path) -> bool:
        """Return whether a weight file is on the disk, or at least its header is known."""
        return path in self.headers or path.exists()

    def add(self, file: str, entries: Mapping[str, TensorEntry]) -> None:
        """Add the tensors of one file."""
        self.tensors.update(entries)
        self.shards.update(dict.fromkeys(entries, file))

    def add_indexed(self, index: Path, *, pickled: bool, hint: str) -> None:
        """Add the shards that an index names, and check that index and shards agree on every tensor.

        A tensor may lie in several shards, if the index names the last one: so are some corrected that a
        first upload had otherwise, and transformers, which reads shard by shard, takes the last one, too.
        """
        suffixes = PICKLE_SUFFIXES if pickled else (".safetensors",)
        weight_map = self.attempt(lambda: read_index(index, suffixes)) or {}
        wanted: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            wanted.setdefault(file, set()).add(name)
        for file, names in sorted(wanted.items()):
            path = index.parent / file
            if not self.exists(path):
                what = f"the shard {file}, which the index names, is missing"
                self.problems.append(Problem(what, str(index.parent), hint))
                continue
            entries = self.read(path, pickled=pickled)
            if entries is None:
                continue
            replaced = {name for name in set(entries) - names if weight_map.get(name, "") > file}
            for differing, what in (
                (names - set(entries), "lacks tensors that the index places there"),
                (set(entries) - names - replaced, "holds tensors that the index does not place there"),
            ):
                if differing:
                    text = f"{what}: {few(sorted(differing))}"
                    where = f"{path} ({index.name})"
                    self.problems.append(Problem(text, where, _UNLIKE))
            self.add(file, {name: entry for name, entry in entries.items() if name not in replaced})
