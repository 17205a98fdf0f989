"""An adapter's folder, written in the one form that every program reads.

Uniform rank with factors filled up by zeros, alpha = r, no patterns, an explicit list of full paths as
target modules, keys and configuration as PEFT has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from submerge.deferred import np, torch
from submerge.errors import Problem, RequestError, WorkError
from submerge.kernels import array_type, compiling_for, is_finite
from submerge.store.adapter._layout import (
    LoraKeys,
    LoraModule,
    file_key,
    padded,
    plan_entries,
    plan_keys,
    rows_key,
    table_key,
)
from submerge.store.adapter._parts import Kind
from submerge.store.adapter._portable_config import portable_config, write_config
from submerge.store.format import (
    DTYPES,
    FileTable,
    Shard,
    ShardWriter,
    Source,
    Spilled,
    SpillFile,
    TensorEntry,
    blocks,
    byte_view,
    dtype_named,
    plan_shards,
    preallocate,
    sync_folder,
)

__all__ = ["ADAPTER_STEM", "LORA_STEM", "AdapterWriter"]

ADAPTER_STEM = "adapter_model"
LORA_STEM = "pytorch_lora_weights"
"""The names, without `.safetensors`, under which PEFT and diffusers look for weights."""

_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class _Table:
    """The values that a parameter has without its factors: their entry in a file, and where to read them."""

    entry: TensorEntry
    open: Callable[[FileTable], Source]


class AdapterWriter:
    """Collects factors from any thread in any order, then writes one adapter; a context manager.

    What is added goes to a temporary file in `folder` at once, so that memory holds one module at a
    time. The bytes that `finish` writes depend on what was added, not on the order. Without `finish`
    nothing is left behind. With `keys`, by name, what is added is written as diffusers and kohya have it: one
    file under these keys, without a configuration.
    """

    def __init__(self, folder: Path, keys: Mapping[str, LoraKeys] | None = None) -> None:
        self.folder = folder
        self.keys = keys
        folder.mkdir(parents=True, exist_ok=True)
        self._updates: dict[str, LoraModule] = {}
        self._saved: dict[str, Spilled] = {}
        self._rows: dict[str, tuple[tuple[int, ...], Spilled]] = {}
        self._tables: dict[str, _Table] = {}
        self._lock = Lock()
        self._file = SpillFile(folder)

    def add(
        self,
        name: str,
        left: torch.Tensor,
        right: torch.Tensor,
        *,
        kind: Kind = "linear",
        transposed: bool = False,
        kernel: Sequence[int] = (),
    ) -> None:
        """Add the update left [m, r] · right [r, n] of a parameter, in the shape that is stored.

        The scale is in the factors. `kind`, `transposed` and `kernel` are those of `LowRankPart`: a
        parameter that is stored transposed (Conv1D), a convolution with n = in · kernel. A bare parameter
        may be of experts, with factors [E, m, r] and [E, r, n]. Raises `RequestError` for a name that has
        no module.
        """
        stacked = left.ndim == 3 and kind == "parameter"
        fits = left.ndim == right.ndim and left.shape[:-2] == right.shape[:-2]
        if not (fits and (left.ndim == 2 or stacked) and left.shape[-1] == right.shape[-2] > 0):
            raise ValueError(f"factors of {name} do not fit: {tuple(left.shape)} and {tuple(right.shape)}")
        module, _, last = name.rpartition(".")
        if not module or (last != "weight" and kind != "parameter"):
            what = f"{name} is no module's weight: an adapter in portable form cannot hold its update"
            raise RequestError(Problem(what, str(self.folder), "leave it out, or write a whole model"))
        update = LoraModule(self._file.put(left), self._file.put(right), kind, transposed, tuple(kernel))
        with self._lock:
            if name in self._updates:
                raise ValueError(f"{name} is added twice")
            self._updates[name] = update

    def save(self, name: str, tensor: torch.Tensor) -> None:
        """Add new values of a parameter, which PEFT saves under `modules_to_save`.

        All parameters of its module must be saved. vLLM and other servers refuse such adapters.
        """
        spilled = self._file.put(tensor)
        with self._lock:
            if name in self._saved:
                raise ValueError(f"{name} is saved twice")
            self._saved[name] = spilled

    def save_rows(self, name: str, rows: Sequence[int], values: torch.Tensor) -> None:
        """Add new values [k, …] of k rows of a table, which PEFT trains with `trainable_token_indices`.

        A head that the base ties to the table gets them, too. vLLM and other servers refuse such adapters.
        """
        if len(rows) != len(values):
            raise ValueError(f"{len(rows)} rows of {name} have {len(values)} values")
        spilled = self._file.put(values)
        with self._lock:
            if name in self._rows:
                raise ValueError(f"rows of {name} are saved twice")
            self._rows[name] = tuple(rows), spilled

    def keep(self, name: str, entry: TensorEntry, source: Callable[[FileTable], Source]) -> None:
        """Add the values that a parameter has without its factors, which are read when all is written.

        PEFT saves those of embeddings, and loads them in the place of the base's. They stay in their type.
        Without factors they are not written.
        """
        with self._lock:
            self._tables[name] = _Table(entry, source)

    @property
    def rank(self) -> int:
        """The largest rank that was added so far."""
        with self._lock:
            return max((update.rank for update in self._updates.values()), default=0)

    def finish(
        self,
        rank: int | None = None,
        *,
        base: str | None = None,
        base_revision: str | None = None,
        dtype: str = "float32",
        task_type: str | None = None,
        ties: bool = False,
    ) -> Path:
        """Write `adapter_model.safetensors` and `adapter_config.json`, and return the folder.

        With `keys` that is `pytorch_lora_weights.safetensors` alone. `rank` is the common rank (default: the
        largest that was added). With `ties` what embeddings get is what the head gets that is tied to them.
        Files of these names are replaced. Raises `RequestError` if nothing was added or `rank` is too small,
        `WorkError` if the disk fails or a value does not fit `dtype`.
        """
        rank = self.rank if rank is None else rank
        code, keys = self._checked(rank, dtype)
        shard = self._plan(keys, rank, code)
        preallocate(self.folder, shard)
        try:
            self._write_all(keys, rank, shard)
            if self.keys is None:
                config = portable_config(
                    self._updates,
                    self._saved,
                    {name: rows for name, (rows, _) in self._rows.items()},
                    rank=rank,
                    base=base,
                    revision=base_revision,
                    task_type=task_type,
                    ties=ties,
                )
                write_config(self.folder, config)
        except BaseException:
            (self.folder / shard.file).unlink(missing_ok=True)
            raise
        sync_folder(self.folder)
        self.close()
        return self.folder

    def close(self) -> None:
        """Drop what was added; may be called twice."""
        self._file.close()

    def __enter__(self) -> AdapterWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, rank: int, dtype: str) -> tuple[str, Mapping[str, tuple[str, str]]]:
        """Return the code of `dtype`, and the keys of each update's factors; errors are those of `finish`."""
        code, used = dtype_named(dtype), self.rank
        problems: list[Problem] = []
        if not self._updates:
            problems.append(Problem("there is no update to write", str(self.folder)))
        if code not in _DTYPES:
            problems.append(Problem(f"{dtype} is no type for an adapter", "", "float32, bfloat16 or float16"))
        if self._updates and rank < used:
            what = f"rank {rank} is too small for factors of rank {used}"
            problems.append(Problem(what, str(self.folder), f"ask for {used}, or reduce the factors first"))
        if self.keys is None:
            keys = plan_keys(self._updates, str(self.folder), problems)
        else:
            keys = {name: (self.keys[name].a, self.keys[name].b) for name in self._updates}
        if problems or code is None:
            raise RequestError(problems)
        return code, keys

    def _plan(self, keys: Mapping[str, tuple[str, str]], rank: int, code: str) -> Shard:
        specs = plan_entries(self._updates, keys, rank, code)
        for name, saved in self._saved.items():
            own = dtype_named(saved.dtype) or ""
            specs.append((file_key(name), code if saved.dtype.is_floating_point else own, saved.shape))
        specs += [(rows_key(name), code, saved.shape) for name, (_, saved) in self._rows.items()]
        specs += [(key, code, ()) for key in self._alphas()]
        specs += [(table_key(name), own.entry.dtype, own.entry.shape) for name, own in self._kept.items()]
        stem = ADAPTER_STEM if self.keys is None else LORA_STEM
        return plan_shards(sorted(specs), stem=stem)[0]

    @property
    def _kept(self) -> dict[str, _Table]:
        """The values of parameters that have factors."""
        return {name: table for name, table in self._tables.items() if name in self._updates}

    def _alphas(self) -> list[str]:
        """Return the keys of alpha, one for each update that has one."""
        keys = self.keys or {}
        return [alpha for name in self._updates if name in keys and (alpha := keys[name].alpha) is not None]

    def _write_all(self, keys: Mapping[str, tuple[str, str]], rank: int, shard: Shard) -> None:
        with ShardWriter(self.folder, [shard]) as writer:
            for name, update in sorted(self._updates.items()):
                left, right = self._file.get(update.left), self._file.get(update.right)
                for key, values in zip(keys[name], padded(update, left, right, rank), strict=True):
                    self._write(writer, shard.entries[key], values)
            for key in self._alphas():  # which gives the scale 1
                self._write(writer, shard.entries[key], torch.tensor(float(rank)))
            for name, saved in sorted(self._saved.items()):
                self._write(writer, shard.entries[file_key(name)], self._file.get(saved))
            for name, (_, saved) in sorted(self._rows.items()):
                self._write(writer, shard.entries[rows_key(name)], self._file.get(saved))
            for name, table in sorted(self._kept.items()):
                _copy(table, writer, shard.entries[table_key(name)])
            writer.sync()

    def _write(self, writer: ShardWriter, entry: TensorEntry, values: torch.Tensor) -> None:
        kind = DTYPES[entry.dtype]
        written = values.to(kind.torch).contiguous()
        if kind.kind == "float" and not bool((written.isfinite() == values.isfinite()).all()):
            what = f"tensor {entry.name}: a value is too large for {kind.torch}"
            raise WorkError(f"{self.folder}: {what} — write the adapter in bfloat16 or float32")
        writer.write(entry, 0, byte_view(written))


def _copy(table: _Table, writer: ShardWriter, entry: TensorEntry) -> None:
    """Write the values of a table, a block at a time; raise `WorkError` where they are no numbers."""
    with FileTable() as files, compiling_for(entry.numel):
        for start, view in blocks(table.open(files), 0, entry.numel, DTYPES[entry.dtype].itemsize):
            if not is_finite(entry.dtype, np.frombuffer(view, array_type(entry.dtype))):
                raise WorkError(f"{table.entry.file}: tensor {table.entry.name} holds NaN or Inf — mend it")
            writer.write(entry, start, view)
