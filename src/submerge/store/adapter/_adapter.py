"""An adapter on disk: what it does to each parameter, with nothing read yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.deferred import np, torch
from submerge.store.adapter._composed import Composed
from submerge.store.adapter._computed import ComputedUpdate, FactoredUpdate
from submerge.store.adapter._parts import (
    Add,
    FactoredProduct,
    Form,
    LowRankPart,
    PackedExperts,
    Part,
    Replace,
    Rows,
    SharedFactors,
    StackedRows,
    is_of_pipeline,
    single_parts,
)
from submerge.store.adapter._transformed import RowMap, Transformed
from submerge.store.folder import Tokenizer
from submerge.store.format import (
    DTYPES,
    FileTable,
    InMemory,
    MemorySource,
    Source,
    TensorEntry,
    blocks,
    file_digest,
    joined,
    read_elements,
)

__all__ = ["Adapter"]

_LINEAR = re.compile(
    r"(?:^|\.)(?:\w+_proj|query(?:_key_value)?|key|value|dense(?:_\w+)?|fc\d|w[123qkvo]|wi(?:_\d)?|[qkvo]"
    r"|lm_head|score|classifier)\.weight$"
)
"""What linear maps of Transformers are called, and no convolutions."""


@dataclass(frozen=True)
class Adapter:
    """One adapter: what it does to each parameter, by the parameter's name in the model.

    `base` and `base_revision` are what it was trained on, as its configuration says. `notes` tell what
    was recognised. `memory` holds the tensors of a pickled file, whose entries have no file. `pending`
    says that the weights of a Hub id are not downloaded yet: shapes are known, values cannot be read.
    `replaced` names tensors that a model took over from the adapter in place of its own; they are no parts
    any more, but `folded` has what the adapter trained of tables that it saved besides. `names` are the
    adapter's own names of that model's parameters, and `unfit` the shapes of those that it has in another
    shape, and does not change. `tokenizer` is what of one lies beside it. `form` says whose file it is; those
    of diffusers and kohya have no configuration, and that of MLX-LM is no part of `config`. `left_out` tells
    what of the files is used by no merge.
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
    memory: Mapping[str, InMemory] = field(default_factory=dict)
    pending: bool = False
    replaced: frozenset[str] = frozenset()
    folded: Mapping[str, Part] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    unfit: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    form: Form = "peft"
    left_out: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of its factors; 0 if it has none."""
        parts = (*self.parts.values(), *self.folded.values())
        return max((part.rank for part in parts if isinstance(part, LowRankPart)), default=0)

    @property
    def scales(self) -> dict[str, float]:
        """The factors that the configuration puts on updates, by the name in the file of B, or of its bias.

        They are no part of the file of weights, nor of its digest. 1 where the file has an alpha itself. What
        else a configuration says of other kinds is among them, under names behind that of a tensor.
        """
        named: dict[str, float] = {}
        for part in (own for whole in self.parts.values() for own in single_parts(whole)):
            if isinstance(part, LowRankPart):
                named[part.left_entry.name] = part.scale
            elif isinstance(part, Add):
                named[part.entry.name] = part.scale
            elif isinstance(part, ComputedUpdate | Transformed):
                named |= part.settings
        return dict(sorted(named.items()))

    def digest(self) -> str:
        """Return the digest of its files' bytes; raise `OSError` where they cannot be read."""
        return joined([file_digest(path) for path in self.files])

    def is_idle(self) -> bool:
        """Return whether all updates are zero, as those of an adapter are before any training.

        Factors are read until one update is not zero: of most adapters those of one module. False for a Hub
        id that is not downloaded, and for adapters with more than factors, of which that is not read; so it
        is for (IA)³ and its like, which change nothing where tensors are not zero.
        """
        single = [part for whole in self.parts.values() for part in single_parts(whole)]
        if self.pending or not all(_is_plain(part) for part in (*self.parts.values(), *single)):
            return False
        with FileTable() as table:
            return all(self._is_zero(part, table) for part in single)

    def _is_zero(self, part: Part, table: FileTable) -> bool:
        """Return whether the scale is zero, or all values of a factor are: a plan does not load torch."""
        if isinstance(part, LowRankPart) and part.alpha is None and part.scale == 0:
            return True
        if not isinstance(part, LowRankPart | ComputedUpdate | Transformed):
            return False
        return any(self._has_zeros_alone(entry, table) for entry in part.factor_entries)

    def _has_zeros_alone(self, entry: TensorEntry, table: FileTable) -> bool:
        """Return whether all values are 0 or -0: no bit is set but the first, which is in the last byte."""
        source, itemsize = self.source(entry, table), DTYPES[entry.dtype].itemsize
        magnitude = np.array([0xFF] * (itemsize - 1) + [0x7F], np.uint8)
        views = (view for _, view in blocks(source, 0, entry.numel, itemsize))
        rows = (np.frombuffer(view, np.uint8).reshape(-1, itemsize) for view in views)
        return not any((values & magnitude).any() for values in rows)

    def dense_only(self, name: str) -> str | None:
        """Return why a part is no low-rank update without the base's values, or None if it is one."""
        part = self.parts[name]
        if isinstance(part, LowRankPart):
            if isinstance(part, SharedFactors) and not part.settled:
                return "of its factors, which all modules share, the base alone tells the size (VeRA)"
            return "DoRA rescales the base's own weights" if part.magnitude is not None else None
        if isinstance(part, Transformed):
            return f"{part.kind} multiplies the base's own weights"
        if isinstance(part, Replace):
            return "it was saved whole, as new values"
        if isinstance(part, Rows):
            return "some of its rows were saved, as new values"
        if isinstance(part, ComputedUpdate):
            what = "a product of matrices" if isinstance(part, Composed) else "computed as a whole"
            return f"it is {what} ({part.kind})"
        if isinstance(part, StackedRows):
            return "it is of several maps in one"
        return "it is an update of a bias, which has no factors, or a difference of all values"

    def low_rank(self, name: str) -> LowRankPart | None:
        """Return a part as a low-rank update that needs no base, or None where it is none.

        LoHa and LoKr do not tell convolutions without cores and whole kernels from linear maps: names tell
        the commonest of the latter, but not in pipelines.
        """
        part = self.parts[name]
        if isinstance(part, FactoredUpdate):
            return FactoredProduct.of(part)
        is_known = isinstance(part, Composed) and (part.kernel or _LINEAR.search(name))
        if isinstance(part, Composed) and is_known and not is_of_pipeline(self.form):
            return FactoredProduct.of(part)
        return part if isinstance(part, LowRankPart) and self.dense_only(name) is None else None

    def factors(
        self, name: str, table: FileTable, *, double: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (left, right), whose product is the update of a parameter of `LowRankPart`.

        left [m, r] holds the scale, right is [r, n]: the update has the parameter's stored shape, with
        all dimensions after the first as one. Experts give [E, m, r] and [E, r, n]. float32, or float64
        where the file is, or with `double`, as for a base in float64: to multiply by the scale rounds.
        """
        part = self.parts[name]
        if not isinstance(part, LowRankPart):
            raise ValueError(f"{name} is no low-rank update: {self.dense_only(name)}")
        if isinstance(part, FactoredProduct):
            assert part.product is not None
            left, right = part.product.factors(lambda entry: self._floats(entry, table))
            return (left.double(), right.double()) if double else (left, right)
        if isinstance(part, PackedExperts):
            left, right = self._packed(part, table, double=double)
            return (right.mT.contiguous(), left.mT.contiguous()) if part.transposed else (left, right)
        return self._pair(part, table, double=double)

    def _packed(
        self, part: PackedExperts, table: FileTable, *, double: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [E, height, r] and A [E, r, in] of experts' matrices, which B has one below another."""
        pairs = [self._pair(matrix.part, table, double=double) for matrix in part.matrices]
        is_double = any(factor.dtype == torch.float64 for pair in pairs for factor in pair)
        dtype = torch.float64 if is_double else torch.float32
        b = torch.zeros(part.experts, part.height, part.rank, dtype=dtype)
        a = torch.zeros(part.experts, part.rank, pairs[0][1].shape[1], dtype=dtype)
        tops = sorted({matrix.top for matrix in part.matrices})
        places, place = {}, 0
        for top in tops:
            places[top] = place
            place += max(matrix.part.rank for matrix in part.matrices if matrix.top == top)
        for matrix, (left, right) in zip(part.matrices, pairs, strict=True):
            ranks = slice(places[matrix.top], places[matrix.top] + matrix.part.rank)
            b[matrix.expert, matrix.top : matrix.top + left.shape[0], ranks] = left
            a[matrix.expert, ranks] = right
        return b, a

    def _pair(
        self, part: LowRankPart, table: FileTable, *, double: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (left, right) of a part with factors of its own."""
        b = self._floats(part.left_entry, table)  # [out, r]
        a = self._floats(part.right_entry, table)  # [r, in]
        if part.swapped:
            a, b = a.mT, b.mT
        if part.core is not None:
            core = self._floats(part.core, table)
            a = torch.einsum("rs...,si->ri...", core, a.flatten(1).to(core))
        if double or a.dtype != b.dtype:
            a, b = a.double(), b.double()
        if part.experts:
            a = a.reshape(part.experts, part.rank, a.shape[1])  # [E·r, in] → [E, r, in]
            b = b.reshape(b.shape[0], part.rank, part.experts).permute(2, 0, 1)  # [out, r·E] → [E, out, r]
            if part.expert is not None:
                a, b = a[part.expert], b[part.expert]
        else:
            a, b = a.flatten(1), b.flatten(1)  # a convolution's kernel into the inputs
        if isinstance(part, SharedFactors):
            b, a = b[: part.size[0]], a[: part.rank, : part.size[1]]
            if part.outside is not None:
                b = self._floats(part.outside, table).flatten().to(b).unsqueeze(1) * b
        if part.between is not None:
            a = self._floats(part.between, table).flatten()[: len(a)].to(a).unsqueeze(1) * a
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

    def tensor(self, name: str, table: FileTable, *, double: bool = False) -> torch.Tensor:
        """Return the values of `Replace` and `Rows`, or the update of others, with its scale.

        Floats are float32, or float64 where the file is, or with `double`; anything else stays as it is.
        """
        part = self.parts[name]
        if isinstance(part, LowRankPart):
            raise ValueError(f"{name} is a low-rank update: read its factors")
        if isinstance(part, StackedRows):
            stacked = torch.zeros(part.shape, dtype=torch.float64 if double else torch.float32)
            for top, own in part.parts:
                update = self._update(own, table, double=double)
                stacked[top : top + len(update)] = update
            return stacked
        if isinstance(part, ComputedUpdate):
            return self._update(part, table, double=double)
        if isinstance(part, Transformed):
            raise ValueError(f"{name} has no values of its own: {self.dense_only(name)}")
        values = self._floats(part.entry, table)
        if double and values.is_floating_point():
            values = values.double()
        return values * part.scale if isinstance(part, Add) else values

    def row_map(self, name: str, table: FileTable) -> RowMap:
        """Return what gives new values of rows of a parameter of `Transformed`, of the base's."""
        part = self.parts[name]
        if not isinstance(part, Transformed):
            raise ValueError(f"{name} is not multiplied by anything")
        return part.row_map(lambda entry: self._floats(entry, table))

    def _update(self, part: LowRankPart | ComputedUpdate, table: FileTable, *, double: bool) -> torch.Tensor:
        """Return an update [m, n], all dimensions after the first as one."""
        if isinstance(part, LowRankPart):
            left, right = self._pair(part, table, double=double)
            return left @ right
        update = part.values(lambda entry: self._narrow(entry, table))
        return update.double() if double else update

    def _narrow(self, entry: TensorEntry, table: FileTable) -> torch.Tensor:
        """Return an entry's values, floats in float32."""
        values = self._floats(entry, table)
        return values.float() if values.is_floating_point() else values

    def source(self, entry: TensorEntry, table: FileTable) -> Source:
        """Return where to read an entry's values by ranges: its file, opened in `table`, or memory."""
        return MemorySource(self.memory[entry.name]) if entry.file is None else table.source(entry)

    def _floats(self, entry: TensorEntry, table: FileTable) -> torch.Tensor:
        values = read_elements(self.source(entry, table), entry.dtype, 0, entry.numel).view(entry.shape)
        return values.float() if entry.is_float and entry.dtype != "F64" else values


def _is_plain(part: Part) -> bool:
    """Return whether zeros in the file tell that a part changes nothing."""
    if isinstance(part, LowRankPart):
        computed = isinstance(part, FactoredProduct)
        return part.magnitude is None and part.copy is None and not computed
    return isinstance(part, ComputedUpdate) or (isinstance(part, Transformed) and bool(part.factor_entries))
