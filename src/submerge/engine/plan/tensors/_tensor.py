"""What happens to one tensor of the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from submerge.algebra import FusedLayout, LayerParameter, WeightedSum
from submerge.methods import MIXTURE, Method, TensorSpec
from submerge.store import Kind, StoredMoments, TensorEntry

__all__ = [
    "CHUNK_VALUES",
    "HELD",
    "Action",
    "Input",
    "Module",
    "TensorPlan",
    "chunk_length",
    "computed_elements",
    "range_length",
    "read_length",
]

Action: TypeAlias = Literal["merge", "take_base", "copy", "skip"]
"""`merge`: the method merges it. `take_base`: a float tensor that a rule takes from the base.
`copy`: an integer or boolean tensor, copied from the base bit for bit. `skip`: what an adapter has no
place for; it is only compared with the base's."""

TREATMENTS: dict[Action, str] = {"merge": "merge", "take_base": "base", "copy": "keep", "skip": "drop"}
"""What submerge.json, `--json` and reports call each action."""

CHUNK_VALUES = 1 << 17
"""Values of one chunk over all models: few enough for a core's own cache, many enough that the arithmetic
outweighs the calls. A constant, for the boundaries of chunks decide how partial sums are grouped."""
READ_ELEMENTS = 1 << 17
"""Elements of each file that are read, digested and written at once: some chunks, for a call to the system
takes longer than one to a compiled loop."""
RANGE_ELEMENTS = 1 << 21
"""Elements that one worker takes at a time, and that one line of the journal covers."""
HELD = 1 << 27
"""Elements of dense updates that are held in memory; more are read anew whenever they are needed.
A constant, for it decides how sums are grouped."""


@dataclass(frozen=True, slots=True)
class Input:
    """One model's part in one output tensor: which of its tensors is read, and why if not its own.

    `patch` says that the model's adapter changes the tensor. A `relative` input is an update of the
    origin as it stands (or none, without a patch), so that no values are read for it; `rank` is that of its
    factors. What was sampled of an `unchanged` input equals the origin: its update is in all likelihood that
    of its adapter alone, which decides nothing but how much memory is planned for.
    """

    model: int
    entry: TensorEntry
    note: str = ""
    patch: bool = False
    relative: bool = False
    rank: int = 0
    unchanged: bool = False

    @property
    def dense(self) -> bool:
        """Whether its update is planned for as one without factors."""
        return not (self.relative or self.unchanged) or (self.patch and not self.rank)


@dataclass(frozen=True, slots=True)
class Module:
    """How an adapter's module stores its weight: see `store.AdapterWriter.add`.

    `table` has the values that the weight has without its factors, where the adapter holds those, too.
    """

    kind: Kind = "linear"
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    table: Input | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One output tensor: how it is made, from what, with which options.

    `inputs` are the method's participants in order (for `copy`: the base's tensor, then those
    that it is compared with; for `take_base`: the base's alone). `origin` is what updates are taken
    against and added to, or None. `values` are the method's options for this tensor. A `matrix` is
    merged by the method's rule for matrices, which of some gates is the rule for every tensor; a `table` is
    one of two dimensions that is no linear map. `module` is how an adapter stores the result; in an adapter a
    tensor without one is saved with all its values, or with those of its `rows` that adapters trained.
    `parameter` is the name whose options and random numbers the tensor has: another than its own where it is
    a copy, as a head that is tied to embeddings.

    A composed model's specialists have files of their own for weights that may be the base's: with `compares`
    they are compared with the origin's, so that an adapter on an unchanged weight is low-rank. With
    `has_streams` tokens run with other values than the merged ones, too, and the bank gets what those need.
    `moments` are those of the inputs of a layer, where the recipe has them, `layer` says which parameter of
    it the tensor is, and `partner` is its other one, where models change that and moments are of both. A
    `mixed` tensor is one of a projector: what is written is the mean of those whose outputs are mixed. With a
    `fused` layout a matrix is several, which the method merges one by one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Action
    inputs: tuple[Input, ...]
    method: Method | None = None
    origin: Input | None = None
    values: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    matrix: bool = False
    table: bool = False
    module: Module | None = None
    rows: tuple[int, ...] = ()
    parameter: str = ""
    compares: bool = False
    has_streams: bool = False
    moments: StoredMoments | None = None
    mixed: bool = False
    layer: LayerParameter | None = None
    partner: TensorPlan | None = None
    fused: FusedLayout | None = None

    @property
    def treatment(self) -> str:
        """The action, as submerge.json, `--json` and reports call it."""
        if self.mixed:
            return "mix"
        return "mixture" if self.method is MIXTURE else TREATMENTS[self.action]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def uses_torch(self) -> bool:
        """Whether torch merges it: as a matrix, with an adapter's edit, or by a method of another package."""
        if self.matrix or self.module is not None or any(member.patch for member in self.members):
            return True
        return self.method is not None and not str(self.method.plan.__module__).startswith("submerge.")

    @property
    def keeps_values(self) -> bool:
        """Whether nothing is computed: the values are those of the one tensor that is read, in its type."""
        if len(self.members) != 1 or self.matrix or self.module is not None or self.mixed or self.has_streams:
            return False
        (only,) = self.members
        if only.patch or only.relative or only.entry.dtype != self.dtype:
            return False
        return self.action == "take_base" or (self.action == "merge" and _is_identity(self))

    @property
    def is_changed(self) -> bool:
        """Whether a model's own values, or its adapter, may change the tensor."""
        return any(member.patch or not member.relative for member in self.inputs)

    @property
    def by_rows(self) -> bool:
        """Whether the result of a matrix is computed as its rows are written: it is not held."""
        return self.layer is not None and self.layer.kind == "embedding"

    @property
    def is_copy(self) -> bool:
        """Whether another tensor of the output is the same parameter, and comes first."""
        return self.parameter not in ("", self.name)

    @property
    def spec(self) -> TensorSpec:
        """The tensor as its method sees it."""
        gate = self.method.gate if self.method else None
        real = gate is not None and gate.every_tensor  # such a method's rule goes by the real dimensions
        shape = self.sides if self.matrix and not real else self.shape
        return TensorSpec(
            self.name, shape, len(self.inputs), self.table, self.moments, self.layer, fused=self.fused
        )

    @property
    def width(self) -> int:
        """The run length that chunks must hold a whole number of."""
        return self.method.width(self.spec, self.values) if self.method else 1

    @property
    def members(self) -> tuple[Input, ...]:
        """All that the fold is made from, the origin first."""
        return ((self.origin,) if self.origin else ()) + self.inputs

    @property
    def read(self) -> tuple[Input, ...]:
        """Those of the members whose values are read."""
        return tuple(member for member in self.members if not member.relative)

    @property
    def sides(self) -> tuple[int, int]:
        """The tensor as a matrix: rows, and all other dimensions as one."""
        return (self.shape[0], math.prod(self.shape[1:])) if self.shape else (1, 1)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The sides of the matrices that the method's rule for matrices merges: one, or each map's."""
        return self.fused.shapes(self.sides) if self.fused else [self.sides]

    @property
    def block(self) -> int:
        """The elements of one range of the last pass: what one record, and one digest, covers."""
        if self.matrix:
            return max(1, self.numel)
        return range_length(chunk_length(len(self.inputs), self.width))


def computed_elements(tensors: Sequence[TensorPlan]) -> int:
    """Return of how many elements the values are computed, and not those of a file."""
    return sum(tensor.numel for tensor in tensors if not tensor.keeps_values)


def _is_identity(tensor: TensorPlan) -> bool:
    """Return whether the method's fold of one update is the update."""
    assert tensor.method is not None
    try:
        next(tensor.method.plan(tensor.spec, tensor.values))
    except StopIteration as end:
        return isinstance(end.value, WeightedSum) and list(end.value.coefficients) == [1.0]
    return False


def chunk_length(count: int, width: int) -> int:
    """Return the elements in a chunk of `count` models: a power of two, or whole runs of `width`."""
    target = max(1 << 13, CHUNK_VALUES >> max(0, count - 1).bit_length())
    return target if width == 1 else width * max(1, target // width)


def range_length(chunk: int) -> int:
    """Return the elements in a range: a whole number of chunks."""
    return chunk * max(1, RANGE_ELEMENTS // chunk)


def read_length(chunk: int) -> int:
    """Return the elements that are read at once: a whole number of chunks."""
    return chunk * max(1, READ_ELEMENTS // chunk)
