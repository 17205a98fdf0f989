"""A model on disk, opened: every tensor located and checked, nothing read yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few
from submerge.names import View
from submerge.store.adapter import Adapter
from submerge.store.folder import (
    PICKLE_SUFFIXES,
    Fetched,
    HoldsAdapterError,
    HubId,
    Tokenizer,
    WeightFiles,
    choose_weights,
    download_hint,
    fetch,
    locate,
    pickle_refusal,
    quantised_config,
    read_index,
    sibling_hint,
    side_files,
    unmergeable_tensors,
)
from submerge.store.format import (
    DTYPES,
    FileTable,
    MemorySource,
    Source,
    TensorEntry,
    ViewSource,
    load_pickled,
    memory_entry,
    read_header,
    read_json,
)

__all__ = ["Checkpoint", "open_checkpoint", "same_values"]

T = TypeVar("T")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One model: where its tensors lie, its configuration, and the files that travel with it.

    `path` is the folder or the bare file; `revision` the resolved commit of a Hub id. `tensors` are in
    file order; `shards` maps each to its weight file's name. `side_files` are relative to the folder and
    `other_weights` are weight files in subfolders that this checkpoint does not read; `links` says why some
    files must not be carried. `memory` holds the
    tensors of pickled weights, whose entries have no file. `pending` says that weights of a Hub id are not
    downloaded yet: names, types and shapes are known, values cannot be read. `adapter` is laid over the
    tensors: what it does to each is to be added to the values that are read, and `under` is the model
    without it. `views` are tensors that go by another name than in the files, or are put together from
    several: views of the tensors of `stored`. `aliases` maps names under which other tensors of the file
    stand here, too, to the names of those.
    """

    label: str
    path: Path
    revision: str | None
    tensors: Mapping[str, TensorEntry]
    shards: Mapping[str, str]
    config: dict[str, Any] | None = None
    side_files: tuple[Path, ...] = ()
    other_weights: tuple[Path, ...] = ()
    links: Mapping[Path, Problem] = field(default_factory=dict)
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pending: bool = False
    adapter: Adapter | None = None
    views: Mapping[str, View] = field(default_factory=dict)
    stored: Checkpoint | None = None
    under: Checkpoint | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted; the adapter's come last."""
        folder = self.path if self.path.is_dir() else self.path.parent
        own = sorted({folder / shard for shard in self.shards.values()})
        return [*own, *(self.adapter.files if self.adapter else ())]

    @property
    def places(self) -> list[Path]:
        """The folders or bare files that it was read from."""
        return [self.path, *([self.adapter.path] if self.adapter else [])]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model: the adapter's where it brings one, else that beside the weights."""
        brought = self.adapter.tokenizer if self.adapter else None
        if brought is not None and brought.complete:
            return brought
        return Tokenizer.among(self.path, self.side_files, self.links)

    def source(self, name: str, table: FileTable) -> Source:
        """Return where to read a tensor's values from: its file, opened in `table`, memory, or views."""
        entry = self.tensors[name]
        if name in self.views and self.stored is not None:
            view, stored = self.views[name], self.stored
            if view.alias is not None:
                return stored.source(view.alias, table)
            parts = {source: stored.source(source, table) for source in view.sources}
            return ViewSource(view, DTYPES[entry.dtype].itemsize, parts)
        return MemorySource(self.memory[name]) if entry.file is None else table.source(entry)

    def in_memory(self, name: str) -> torch.Tensor | None:
        """Return a tensor whose values are in memory, or None where they are to be read."""
        if name in self.views and self.stored is not None:
            alias = self.views[name].alias
            return None if alias is None else self.stored.in_memory(alias)
        return self.memory.get(name)

    def stored_as(self, name: str) -> str:
        """Return what the files call a tensor: its name, or those of its parts."""
        if name not in self.views:
            return name
        first, *more = self.views[name].sources
        return f"{first} and {len(more)} more" if more else first

    @property
    def renamed(self) -> str:
        """How many tensors have another name than in the files, or are made of others; else an empty text."""
        kinds: dict[str, list[str]] = {"by another name": [], "packed otherwise": []}
        for name, view in self.views.items():
            kinds["packed otherwise" if view.alias is None else "by another name"].append(name)
        return ", ".join(
            f"{len(names)} {how} ({self.stored_as(names[0])} for {names[0]})"
            for how, names in kinds.items()
            if names
        )


def open_checkpoint(
    spec: str, *, root: Path | None = None, allow_pickle: bool = False, download: bool = True
) -> Checkpoint:
    """Return the checkpoint that `spec` names: a folder, a safetensors file, or `org/name[@revision]`.

    Relative paths start at `root` (default: the current folder). Only headers are read; with
    `download` false not even a Hub id's weights are fetched, where headers can be read without. Raises
    `RequestError` with everything that is wrong with the files.
    """
    root = Path.cwd() if root is None else root
    place = locate(spec, root)
    if isinstance(place, HubId):
        try:
            found = fetch(place.repo, place.revision, allow_pickle=allow_pickle, weights=download)
        except HoldsAdapterError:
            raise
        except RequestError as error:
            near = sibling_hint(spec, root)
            raise RequestError([*error.problems, *([Problem(near, spec)] if near else [])]) from None
        hint = download_hint(place.repo, place.revision)
        return replace(_open_folder(found.folder, spec, allow_pickle, hint, found), revision=found.commit)
    if place.is_dir():
        return _open_folder(place, spec, allow_pickle, "copy or download the missing file")
    return _open_file(place, spec, allow_pickle)


def same_values(model: Checkpoint, one: str, other: str, table: FileTable) -> bool:
    """Return whether two tensors of a model have one type, one shape, and equal bytes."""
    first, second = model.tensors[one], model.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    size, sources = DTYPES[first.dtype].itemsize, [model.source(name, table) for name in (one, other)]
    for start in range(0, first.numel, _BLOCK):
        count = min(_BLOCK, first.numel - start)
        buffers = [bytearray(count * size) for _ in sources]
        for source, buffer in zip(sources, buffers, strict=True):
            source.read(start, count, memoryview(buffer))
        if buffers[0] != buffers[1]:
            return False
    return True


@dataclass
class _Weights:
    """What was found while reading weight files, problems included."""

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    headers: Mapping[str, Mapping[str, TensorEntry]] = field(default_factory=dict)

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
        if path.name in self.headers:
            return self.headers[path.name]
        if not pickled:
            header = self.attempt(lambda: read_header(path))
            return None if header is None else header.entries
        loaded = self.attempt(lambda: load_pickled(path))
        if loaded is None:
            return None
        self.memory.update(loaded)
        return {name: memory_entry(name, tensor) for name, tensor in loaded.items()}

    def there(self, path: Path) -> bool:
        """Return whether a weight file is on the disk, or at least its header is known."""
        return path.name in self.headers or path.exists()

    def add(self, file: str, entries: Mapping[str, TensorEntry]) -> None:
        self.tensors.update(entries)
        self.shards.update(dict.fromkeys(entries, file))

    def add_indexed(self, index: Path, *, pickled: bool, hint: str) -> None:
        """Add the shards that an index names, and check that index and shards agree on every tensor."""
        suffixes = PICKLE_SUFFIXES if pickled else (".safetensors",)
        weight_map = self.attempt(lambda: read_index(index, suffixes)) or {}
        wanted: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            wanted.setdefault(file, set()).add(name)
        for file, names in sorted(wanted.items()):
            path = index.with_name(file)
            if not self.there(path):
                what = f"the shard {file}, which the index names, is missing"
                self.problems.append(Problem(what, str(index.parent), hint))
                continue
            entries = self.read(path, pickled=pickled)
            if entries is None:
                continue
            for group, what in (
                (names - set(entries), "lacks tensors that the index places there"),
                (set(entries) - names, "holds tensors that the index does not place there"),
            ):
                if group:
                    text = f"{what}: {few(sorted(group))}"
                    where = f"{path} ({index.name})"
                    self.problems.append(Problem(text, where, "index and shards are not of one model"))
            self.add(file, entries)


def _open_folder(
    folder: Path, label: str, allow_pickle: bool, hint: str, fetched: Fetched | None = None
) -> Checkpoint:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise RequestError(Problem("the folder cannot be read", str(folder), "check the permissions"))
    found = _Weights(headers=fetched.headers if fetched else {})
    config_path = folder / "config.json"
    config = found.attempt(lambda: read_json(config_path)) if config_path.is_file() else None
    if config is not None:
        found.problems.extend(quantised_config(config, config_path))
    choice = fetched.choice if fetched else None
    choice = choice or found.attempt(lambda: _choose(folder, allow_pickle))
    if choice is None:
        raise RequestError(found.problems)
    if choice.index:
        found.add_indexed(folder / choice.name, pickled=choice.pickled, hint=hint)
    elif not found.there(folder / choice.name):  # a link of the Hub cache whose blob is gone
        found.problems.append(
            Problem(f"the file {choice.name} is a link that leads nowhere", str(folder), hint)
        )
    else:
        found.add(choice.name, found.read(folder / choice.name, pickled=choice.pickled) or {})
    beside = side_files(folder)
    model = Checkpoint(
        label,
        folder,
        None,
        {},
        {},
        config,
        beside.carried,
        beside.weights,
        links=beside.links,
        pending=bool(found.headers),
    )
    return _checked(found, model)


def _open_file(path: Path, label: str, allow_pickle: bool) -> Checkpoint:
    pickled = path.name.endswith(PICKLE_SUFFIXES)
    if pickled and not allow_pickle:
        raise RequestError(pickle_refusal(str(path)))
    if path.name.endswith(".json"):
        raise RequestError(Problem("is not a weight file", str(path), "name the folder that holds it"))
    found = _Weights()
    found.add(path.name, found.read(path, pickled=pickled) or {})
    return _checked(found, Checkpoint(label, path, None, {}, {}))


def _checked(found: _Weights, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its tensors in place, or raise everything that was found wrong."""
    found.problems.extend(unmergeable_tensors(found.tensors.values(), checkpoint.path))
    if not found.tensors and not found.problems:
        found.problems.append(Problem("holds no tensors", str(checkpoint.path), "give the right file"))
    if found.problems:
        raise RequestError(found.problems)
    return replace(checkpoint, tensors=found.tensors, shards=found.shards, memory=found.memory)


def _choose(folder: Path, allow_pickle: bool) -> WeightFiles:
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    return choose_weights(
        [entry.name for entry in entries if not entry.is_dir()],
        str(folder),
        allow_pickle=allow_pickle,
        subfolders=[inner.name for inner in folders if next(inner.glob("*.safetensors"), None) is not None],
    )
