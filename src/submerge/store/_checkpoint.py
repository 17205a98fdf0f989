"""A model on disk, opened: every tensor located and checked, nothing read yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from submerge.errors import Problem, few
from submerge.names import Shape, View
from submerge.store._computed_rows import RowSource
from submerge.store._virtual import VirtualModel
from submerge.store.adapter import Adapter, Part
from submerge.store.folder import Tokenizer
from submerge.store.format import (
    FileTable,
    InMemory,
    MemorySource,
    Source,
    TensorEntry,
    ViewSource,
)

__all__ = ["Checkpoint", "first_bytes", "same_values"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """One model: where its tensors lie, its configuration, and the files that travel with it.

    `path` is the folder or the bare file; `revision` the resolved commit of a Hub id. `tensors` are in
    file order; `shards` maps each to its weight file's name. `side_files` are relative to the folder and
    `other_weights` are weight files in subfolders that this checkpoint does not read; `links` says why some
    files must not be copied. `memory` holds the tensors of pickled weights, whose entries have no file.
    `pending` says that weights of a Hub id are not downloaded yet, or that the model is still to be merged:
    names, types and shapes are known, values cannot be read; `given_tokenizer` is the one that such a merge
    will copy. `adapter` is laid over the tensors: what it does to each is to be added to the values that are
    read, and `under` is the model without it. `views` are tensors that go by another name than in the files,
    or are put together from several: views of the tensors of `stored`. `aliases` maps names under which other
    tensors of the file stand here, too, to the names of those. `token_tables` are views whose rows are those
    of the tokens of several models, and `computed` are rows or tensors that no file has. All tensors of a
    `virtual` model are: they are merged as they are read.
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
    memory: Mapping[str, InMemory] = field(default_factory=dict)
    pending: bool = False
    adapter: Adapter | None = None
    views: Mapping[str, View] = field(default_factory=dict)
    stored: Checkpoint | None = None
    under: Checkpoint | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    token_tables: frozenset[str] = frozenset()
    computed: Mapping[str, RowSource] = field(default_factory=dict)
    given_tokenizer: Tokenizer | None = None
    virtual: VirtualModel | None = None

    @property
    def has_values(self) -> bool:
        """Whether its tensors have values: the base of adapters alone is a list of names and shapes."""
        return bool(self.shards or self.memory or self.virtual)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each tensor by its name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

    @property
    def files(self) -> list[Path]:
        """The files that its values are read from."""
        return [*(self.virtual.files if self.virtual else ()), *self.own_files]

    @property
    def own_files(self) -> list[Path]:
        """Its own weight files, sorted; the adapter's come last. A virtual model has none."""
        folder = self.path if self.path.is_dir() else self.path.parent
        own = sorted({folder / shard for shard in self.shards.values()})
        return [*own, *(self.adapter.files if self.adapter else ())]

    @property
    def places(self) -> list[Path]:
        """The folders or bare files that it was read from."""
        virtual = self.virtual.places if self.virtual else ()
        return [self.path, *virtual, *([self.adapter.path] if self.adapter else [])]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model: the adapter's where it brings one, else that beside the weights."""
        brought = self.adapter.tokenizer if self.adapter else None
        if brought is not None and brought.complete:
            return brought
        return self.given_tokenizer or Tokenizer.among(self.path, self.side_files, self.links)

    def part(self, name: str) -> Part | None:
        """Return what its adapter does to a tensor; None where it does nothing to it, or there is none."""
        return self.adapter.parts.get(name) if self.adapter else None

    @cached_property
    def edited(self) -> frozenset[str]:
        """The tensors that its adapter changes, or has in the place of the model's own."""
        return self.adapter.replaced.union(self.adapter.parts) if self.adapter else frozenset()

    def source(self, name: str, table: FileTable) -> Source:
        """Return where to read a tensor's values: its file, opened in `table`, memory, views, or rows."""
        entry = self.tensors[name]
        if name in self.views and self.stored is not None:
            view, stored = self.views[name], self.stored
            if view.alias is not None:
                return stored.source(view.alias, table)
            parts = {source: stored.source(source, table) for source in view.sources}
            return ViewSource(view, entry.itemsize, parts)
        if name in self.computed:
            return self.computed[name].open(table)
        return MemorySource(self.memory[name]) if entry.file is None else table.source(entry)

    def in_memory(self, name: str) -> InMemory | None:
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
            if name in self.token_tables:
                continue
            kinds["packed otherwise" if view.alias is None else "by another name"].append(name)
        shown = [
            f"{len(names)} {how} ({self.stored_as(names[0])} for {names[0]})"
            for how, names in kinds.items()
            if names
        ]
        tables = sorted(self.token_tables)
        return ", ".join([*shown, *([f"a row for each shared token in {few(tables)}"] if tables else [])])


def first_bytes(model: Checkpoint, name: str, table: FileTable) -> bytes:
    """Return the first bytes of a tensor of a model, 64 KiB at most."""
    entry = model.tensors[name]
    size = entry.itemsize
    count = min(entry.numel, (1 << 16) // size)
    buffer = bytearray(count * size)
    model.source(name, table).read(0, count, memoryview(buffer))
    return bytes(buffer)


def same_values(model: Checkpoint, one: str, other: str, table: FileTable) -> bool:
    """Return whether two tensors of a model have one type, one shape, and equal bytes.

    A tensor without values, of an adapter for a base of another shape, is like no other.
    """
    first, second = model.tensors[one], model.tensors[other]
    is_bare = any(entry.numel and not entry.nbytes for entry in (first, second))
    if is_bare or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    size, sources = first.itemsize, [model.source(name, table) for name in (one, other)]
    for start in range(0, first.numel, _BLOCK):
        count = min(_BLOCK, first.numel - start)
        buffers = [bytearray(count * size) for _ in sources]
        for source, buffer in zip(sources, buffers, strict=True):
            source.read(start, count, memoryview(buffer))
        if buffers[0] != buffers[1]:
            return False
    return True
