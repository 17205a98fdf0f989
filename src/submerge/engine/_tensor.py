"""What happens to one tensor of the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from submerge.methods import Method, TensorSpec
from submerge.store import TensorEntry

__all__ = ["CHUNK_VALUES", "Input", "TensorPlan", "Treatment", "chunk_length", "task_length"]

Treatment: TypeAlias = Literal["merge", "base", "keep"]
"""`merge`: the method folds it. `base`: a float tensor that a rule takes from the base.
`keep`: an integer or boolean tensor, copied from the base bit for bit."""

CHUNK_VALUES = 1 << 21
"""Values of one chunk over all models: large enough that workers seldom wait for the interpreter lock,
small enough for the caches.
A constant, for the boundaries of chunks decide how partial sums are grouped."""
TASK_ELEMENTS = 1 << 21
"""Elements that one worker takes at a time, and that one line of the journal covers."""


@dataclass(frozen=True, slots=True)
class Input:
    """One model's part in one output tensor: which of its tensors is read, and why if not its own."""

    model: int
    entry: TensorEntry
    note: str = ""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor: how it is made, from what, with which options.

    `inputs` are the method's participants in order (for `keep`: the base's tensor, then those
    that it is compared with; for `base`: the base's alone). `origin` is what updates are taken
    against and added to, or None. `values` are the method's options for this tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    treatment: Treatment
    method: Method | None
    inputs: tuple[Input, ...]
    origin: Input | None
    values: dict[str, Any]
    why: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def spec(self) -> TensorSpec:
        """The tensor as its method sees it."""
        return TensorSpec(self.name, self.shape, len(self.inputs))

    @property
    def width(self) -> int:
        """The run length that chunks must hold a whole number of."""
        return self.method.width(self.spec, self.values) if self.method else 1

    @property
    def read(self) -> tuple[Input, ...]:
        """Every tensor that the fold reads, the origin first."""
        return ((self.origin,) if self.origin else ()) + self.inputs


def chunk_length(count: int, width: int) -> int:
    """Return the elements in a chunk of `count` models: a power of two, or whole runs of `width`."""
    target = max(1 << 13, CHUNK_VALUES >> max(0, count - 1).bit_length())
    return target if width == 1 else width * max(1, target // width)


def task_length(chunk: int) -> int:
    """Return the elements in a task: a whole number of chunks."""
    return chunk * max(1, TASK_ELEMENTS // chunk)
