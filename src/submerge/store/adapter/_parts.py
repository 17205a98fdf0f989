"""What an adapter holds for one parameter: a low-rank update, other values, rows, or a sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from submerge.store.adapter._composed import Composed
from submerge.store.adapter._computed import ComputedUpdate, FactoredUpdate
from submerge.store.adapter._transformed import Transformed
from submerge.store.format import TensorEntry

__all__ = [
    "PACKED_ORDER",
    "Add",
    "ExpertMatrix",
    "FactoredProduct",
    "Form",
    "Kind",
    "LowRankPart",
    "PackedExperts",
    "Part",
    "Replace",
    "Rows",
    "SharedFactors",
    "StackedRows",
    "is_of_pipeline",
    "is_relative",
    "saved_table",
    "single_parts",
]

Shape: TypeAlias = tuple[int, ...]
# the order in which modules of Transformers define them; PEFT wraps the first one first
PACKED_ORDER = (
    "gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias", "w1", "v1", "w2",
)  # fmt: skip
Kind: TypeAlias = Literal["linear", "embedding", "parameter"]
Form: TypeAlias = Literal["peft", "mlx", "diffusers", "kohya"]


def is_of_pipeline(form: Form) -> bool:
    """Return whether files of a form may hold parts for several models, under prefixes of their own."""
    return form in ("diffusers", "kohya")


@dataclass(frozen=True)
class LowRankPart:
    """The update scale · B A, of which `left_entry` is B [out, r] and `right_entry` is A [r, in].

    `transposed` says that the parameter is stored as the transpose: an embedding, Conv1D, experts as
    [E, in, out]. For a convolution A has the kernel behind it. With `experts` = E > 0 the parameter has
    three dimensions, A is [E·r, in] (experts outside), B is [out, r·E] (experts inside). `settled` is
    false where only the base tells which of two shapes the parameter has. With a `magnitude` (DoRA) the
    new weight is m · (W + update) / ‖W + update‖, the norm over all inputs of one output. `copy` is the
    weight itself, as saved beside the factors. `expert` and `rows` choose one expert, and of the parameter's
    rows those from the first up to the last. Where the file holds an `alpha`, the scale is alpha / rank.
    `swapped` factors are stored transposed, B as [r, out] and A as [in, r]. With a `core` [r, r, kernel]
    (LoCon) the update is B · core · A. LyCORIS' DoRA may take norms `by_input`, over all outputs of each.
    With singular values `between` [r, 1] (AdaLoRA) it is B diag(e) A. A matrix A [r, in · kernel] of a
    convolution has its kernel `folded` into the inputs.
    """

    left_entry: TensorEntry
    right_entry: TensorEntry
    scale: float
    transposed: bool = False
    magnitude: TensorEntry | None = None
    experts: int = 0
    settled: bool = True
    copy: TensorEntry | None = None
    expert: int | None = None
    rows: tuple[int, int] | None = None
    kind: Kind = "linear"
    alpha: TensorEntry | None = None
    swapped: bool = False
    core: TensorEntry | None = None
    by_input: bool = False
    between: TensorEntry | None = None
    folded: Shape = ()

    @property
    def scales_columns(self) -> bool:
        """Whether DoRA's norms are those of the columns of the parameter as it is stored, not of rows."""
        return self.transposed != self.by_input

    @property
    def rank(self) -> int:
        """The rank of the factors, of one expert where there are several."""
        return self.right_entry.shape[int(self.swapped)] // max(1, self.experts)

    @property
    def kernel(self) -> Shape:
        """The shape of a convolution's kernel; empty for a matrix."""
        return self.folded or (self.core or self.right_entry).shape[2:]

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        """The tensors whose product is the update, which is zero where one of them is."""
        entries = (self.left_entry, self.right_entry, self.between)
        return tuple(entry for entry in entries if entry is not None)

    @property
    def stored(self) -> Shape:
        """The parameter's shape as far as the adapter knows: the one that `transposed` stands for."""
        at_out, at_in = (1, 0) if self.swapped else (0, 1)
        outputs, inputs = self.left_entry.shape[at_out], self.right_entry.shape[at_in]
        inputs //= math.prod(self.folded)
        rows, columns = (inputs, outputs) if self.transposed else (outputs, inputs)
        if self.rows is not None:
            rows = self.rows[1] - self.rows[0]
        stack = (self.experts,) if self.experts and self.expert is None else ()
        return (*stack, rows, columns, *self.kernel)

    @property
    def shape(self) -> Shape | None:
        """The parameter's shape, or None where the adapter alone does not determine it."""
        return self.stored if self.settled else None


@dataclass(frozen=True)
class ExpertMatrix:
    """The update of one matrix of an expert, whose rows begin at `top` among all rows of the expert."""

    part: LowRankPart
    expert: int
    top: int


@dataclass(frozen=True)
class PackedExperts(LowRankPart):
    """Updates of single experts as one of the parameter [E, …] that packs them.

    An expert of it is [`height`, inputs], or the transpose. `left_entry`, `right_entry` and `scale` are those
    of the first matrix. Experts, and matrices of an expert, that `matrices` does not name have no update.
    """

    matrices: tuple[ExpertMatrix, ...] = ()
    height: int = 0

    @property
    def rank(self) -> int:
        """The rank of an expert's update: the sum of those of its matrices."""
        ranks: dict[int, int] = {}
        for matrix in self.matrices:
            ranks[matrix.top] = max(ranks.get(matrix.top, 0), matrix.part.rank)
        return sum(ranks.values())

    @property
    def stored(self) -> Shape:
        """The parameter's shape."""
        inputs = self.right_entry.shape[1]
        return (self.experts, *((inputs, self.height) if self.transposed else (self.height, inputs)))


@dataclass(frozen=True)
class FactoredProduct(LowRankPart):
    """LoHa, LoKr and others as an update by factors, which are computed of the `product`.

    `left_entry` and `right_entry` have their shapes, and are in no file.
    """

    product: Composed | FactoredUpdate | None = None

    @classmethod
    def of(cls, product: Composed | FactoredUpdate) -> FactoredProduct:
        """Return a product, the update of a linear map or of a known kernel, in this form."""
        kernel: Shape = ()
        scale, transposed = 1.0, False
        if isinstance(product, Composed):
            first, rank, scale = product.first.entries[0], product.factored_rank, product.scale
            kernel = product.kernel
        else:
            first, rank, transposed = product.entry, product.rank, product.transposed
        (m, n), name = product.matrix, first.name
        outputs, inputs = (n, m) if transposed else (m, n // math.prod(kernel))
        left = TensorEntry(f"{name} (left)", first.dtype, (outputs, rank), None, 0, 0)
        right = TensorEntry(f"{name} (right)", first.dtype, (rank, inputs, *kernel), None, 0, 0)
        return cls(left, right, scale, transposed=transposed, copy=product.copy, product=product)


@dataclass(frozen=True)
class SharedFactors(LowRankPart):
    """The update diag(b) B diag(d) A, with factors B and A that all modules share (VeRA, 2310.11454).

    `outside` is b [outputs], `between` d [r]. The first `size` rows of B and columns of A are the module's.
    How many inputs it has, the base alone tells. PVeRA (2512.07703) has another half of d and of A's rows, of
    which PEFT merges nothing: a variance, to be drawn with.
    """

    outside: TensorEntry | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.left_entry.shape[1]

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        """The tensors whose product is the update, which is zero where one of them is."""
        return super().factor_entries if self.outside is None else (*super().factor_entries, self.outside)

    @property
    def stored(self) -> Shape:
        """The parameter's shape, with all columns of A where it is not settled."""
        outputs, inputs = self.size
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def sized(self, shape: Shape, *, either_layout: bool) -> SharedFactors | None:
        """Return the update of a parameter of a shape, or None where it does not fit."""
        layouts = (self.transposed, not self.transposed) if either_layout else (self.transposed,)
        for transposed in layouts if len(shape) == 2 else ():
            outputs, inputs = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
            if outputs == self.size[0] and inputs <= self.right_entry.shape[1]:
                return replace(self, transposed=transposed, size=(outputs, inputs), settled=True)
        return None


@dataclass(frozen=True)
class Replace:
    """All new values of the parameter: `modules_to_save`, trained biases, a resized embedding."""

    entry: TensorEntry

    @property
    def shape(self) -> Shape | None:
        """The parameter's shape."""
        return self.entry.shape


@dataclass(frozen=True)
class Add:
    """The full-rank update scale · entry: the bias of B, or a difference of values."""

    entry: TensorEntry
    scale: float

    @property
    def shape(self) -> Shape | None:
        """The parameter's shape."""
        return self.entry.shape


@dataclass(frozen=True)
class Rows:
    """New values of some rows, which `indices` names in the order of the entry's rows.

    `table` is the parameter from before the training, where it was saved beside them: PEFT does so when the
    vocabulary was resized.
    """

    entry: TensorEntry
    indices: tuple[int, ...]
    table: TensorEntry | None = None

    @property
    def shape(self) -> Shape | None:
        """The table's; None where it was not saved: how many rows the parameter has is not known."""
        return None if self.table is None else self.table.shape


@dataclass(frozen=True)
class StackedRows:
    """Updates of maps that a parameter has one below the other, each with the row at which it begins."""

    parts: tuple[tuple[int, LowRankPart | ComputedUpdate], ...]
    shape: Shape


Part: TypeAlias = LowRankPart | Replace | Add | Rows | ComputedUpdate | Transformed | StackedRows


def single_parts(part: Part) -> tuple[Part, ...]:
    """Return the parts that a file has factors of: of those that were put together, each."""
    if isinstance(part, StackedRows):
        return tuple(own for _, own in part.parts)
    return tuple(m.part for m in part.matrices) if isinstance(part, PackedExperts) else (part,)


def is_relative(part: Part) -> bool:
    """Return whether the part is an update as it stands, which the base's values do not change."""
    return isinstance(part, Add | ComputedUpdate | StackedRows) or (
        isinstance(part, LowRankPart) and part.magnitude is None
    )


def saved_table(part: Part) -> TensorEntry | None:
    """Return the table from before the training that was saved beside a part, if one was."""
    if isinstance(part, Rows):
        return part.table
    if isinstance(part, LowRankPart) and part.copy and part.copy.shape == part.stored:
        return part.copy
    return part.copy if isinstance(part, ComputedUpdate | Transformed) else None
