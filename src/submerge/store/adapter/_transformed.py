"""New values of a parameter that are a function of the base's: (IA)³, OFT, BOFT and HRA.

W [m, n] is the parameter with all dimensions after the first as one. New values of these kinds are
diag(s) W M, so that those of a row depend on that row alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from submerge.deferred import torch
from submerge.store.adapter._computed import Read
from submerge.store.format import TensorEntry

__all__ = ["Butterfly", "Reflections", "Rotations", "RowMap", "RowReader", "Scaled", "Transformed"]

RowReader: TypeAlias = Callable[[int, int], "torch.Tensor"]
"""Returns rows [first, last) of W, in the type of all."""
RowMap: TypeAlias = Callable[["torch.Tensor", int, RowReader], "torch.Tensor"]
"""Returns the new values of rows [k, n] of W, the first of which is that of the number.

Others, which new values of few kinds depend on, are read.
"""


@dataclass(frozen=True)
class Transformed(ABC):
    """What an adapter does to the values of a parameter; `entry` is the first of its tensors.

    `copy` is the parameter itself, as saved beside it.
    """

    entry: TensorEntry
    copy: TensorEntry | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> None:
        """Which shape the parameter has, the base alone tells."""
        return None

    @property
    @abstractmethod
    def kind(self) -> str:
        """How the literature calls it."""

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        """The tensors of which each leaves the base as it is where it is zero."""
        return ()

    @property
    def settings(self) -> dict[str, float]:
        """What the configuration says of it, by the name of a tensor in the file."""
        return {}

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> Transformed | None:
        """Return what it does to a parameter of a shape, or None where it does not fit.

        With `either_layout` it may be stored as [inputs, outputs].
        """
        del either_layout
        return self if shape and self.takes(shape[0], math.prod(shape[1:])) else None

    def of_bias(self) -> Transformed | None:
        """Return what it does to the bias beside a weight; None where that stays as it is."""
        return None

    @abstractmethod
    def takes(self, m: int, n: int) -> bool:
        """Return whether W may be of this size."""

    @abstractmethod
    def row_map(self, read: Read) -> RowMap:
        """Return what gives new rows; the adapter's tensors are read here, and nowhere else."""


@dataclass(frozen=True)
class Scaled(Transformed):
    """(IA)³: the outputs of a map are scaled, one by one, or its inputs with `by_input` (2205.05638).

    A bias is scaled as outputs are. `transposed` says that the parameter is stored as [inputs, outputs].
    """

    by_input: bool = False
    transposed: bool = False

    @property
    def kind(self) -> str:
        return "(IA)³"

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: float(self.by_input)}

    def fitted(self, shape: tuple[int, ...], *, either_layout: bool) -> Transformed | None:
        layouts = (self.transposed, not self.transposed) if either_layout and len(shape) == 2 else (False,)
        count = self.entry.numel
        for transposed in layouts if shape else ():
            axis = int(self.by_input != transposed)
            if len(shape) > axis and shape[axis] == count:
                return replace(self, transposed=transposed)
        return None

    def of_bias(self) -> Transformed | None:
        return None if self.by_input else replace(self, transposed=False)

    def takes(self, m: int, n: int) -> bool:
        return (n % self.entry.numel == 0) if self.by_input != self.transposed else m == self.entry.numel

    def row_map(self, read: Read) -> RowMap:
        scales = read(self.entry).flatten()

        def by_column(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            return rows * scales.repeat_interleave(rows.shape[1] // scales.numel()).to(rows)

        def by_row(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            return rows * scales[top : top + len(rows)].to(rows).unsqueeze(1)

        return by_column if self.by_input != self.transposed else by_row


@dataclass(frozen=True)
class Rotations(Transformed):
    """OFT: blocks of inputs are rotated, each by its own matrix R, or all by one (2306.07280, 2506.19847).

    The file has [blocks, b (b − 1) / 2], what is above the diagonal of skew-symmetric matrices Q, and
    R = (I − Q)(I + Q)⁻¹, or its series of `terms` terms. Of an embedding what it returns is rotated. With
    `limit` (constrained OFT) ‖Q‖ is at most limit / √blocks.
    """

    terms: int | None = None
    shared: bool = False
    limit: float | None = None
    of_embedding: bool = False

    @property
    def kind(self) -> str:
        return "OFT"

    @property
    def factor_entries(self) -> tuple[TensorEntry, ...]:
        return (self.entry,)

    @property
    def settings(self) -> dict[str, float]:
        name = self.entry.name
        return {f"{name}.terms": float(self.terms or 0), f"{name}.eps": self.limit or 0.0}

    @property
    def block(self) -> int:
        """The size of a block."""
        return (1 + math.isqrt(1 + 8 * self.entry.shape[1])) // 2

    @property
    def is_whole(self) -> bool:
        """Whether the file has as many values of each block as there are above a diagonal."""
        return self.block * (self.block - 1) // 2 == self.entry.shape[1]

    def takes(self, m: int, n: int) -> bool:
        return n % self.block == 0 if self.shared else n == self.entry.shape[0] * self.block

    def row_map(self, read: Read) -> RowMap:
        turned = self._rotations(read(self.entry).double())
        turned = turned if self.of_embedding else turned.mT

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            blocks = rows.reshape(len(rows), -1, self.block)
            own = turned.to(rows).expand(blocks.shape[1], -1, -1)
            return torch.einsum("krc,rcd->krd", blocks, own).flatten(1)

        return new_rows

    def _rotations(self, values: torch.Tensor) -> torch.Tensor:
        size = self.block
        if self.limit is not None:
            longest = self.limit / math.sqrt(len(values))
            lengths = math.sqrt(2) * values.norm(dim=1, keepdim=True)  # of Q, which has each value twice
            values = torch.where(lengths <= longest, values, values * longest / lengths)
        skew = values.new_zeros(len(values), size, size)
        rows, columns = torch.triu_indices(size, size, 1)
        skew[:, rows, columns] = values
        skew = skew - skew.mT
        return _cayley(skew) if self.terms is None else _series(skew, self.terms)


def _cayley(skew: torch.Tensor) -> torch.Tensor:
    """Return the rotations (I − Q)(I + Q)⁻¹ of skew-symmetric matrices [.., b, b]."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    rotations: torch.Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
    return rotations


def _series(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """Return I + 2 Q + 2 Q² + … + Qⁿ, by which PEFT approximates rotations from version 0.18 on."""
    result = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    if terms < 3:
        return result + 2 * skew if terms == 2 else result
    last = max(3, terms - 1)
    power = result
    for exponent in range(1, last + 1):
        power = power @ skew
        result = result + (1 if exponent == last else 2) * power
    return result


@dataclass(frozen=True)
class Butterfly(Transformed):
    """BOFT: inputs are rotated in blocks, and again in blocks of others; outputs are scaled (2311.06243).

    `entry` is [factors, blocks, b, b], of which the skew-symmetric part counts, and `scales` are [m, 1].
    """

    scales: TensorEntry

    @property
    def kind(self) -> str:
        return "BOFT"

    def takes(self, m: int, n: int) -> bool:
        factors, blocks, size, _ = self.entry.shape
        even = factors == 1 or (size % 2 == 0 and blocks % 2 ** (factors - 1) == 0)
        return even and n == blocks * size and m == self.scales.numel

    def row_map(self, read: Read) -> RowMap:
        blocks = read(self.entry).double()
        rotations = _cayley((blocks - blocks.mT) / 2)
        scales = read(self.scales).flatten()

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            new = rows
            for number, own in enumerate(rotations):
                order = _butterfly_order(rows.shape[1], len(own), number)
                moved = new[:, order.argsort()].reshape(len(rows), *own.shape[:2])
                new = torch.einsum("krd,rcd->krc", moved, own.to(rows)).flatten(1)[:, order]
            return new * scales[top : top + len(rows)].to(rows).unsqueeze(1)

        return new_rows


def _butterfly_order(inputs: int, blocks: int, number: int) -> torch.Tensor:
    """Return in which order a factor takes n inputs: halves of blocks at even places, then at odd ones."""
    order = torch.arange(inputs)
    if number == 0:
        return order
    half = inputs // blocks // 2
    return order.view(blocks >> number, 1 << number, 2, half).transpose(1, 2).flatten()


@dataclass(frozen=True)
class Reflections(Transformed):
    """HRA: inputs are reflected by r vectors, one after the other, M = Π (I − 2 u uᵀ) (2405.17484).

    `entry` is [n, r]. With `orthogonal` the vectors are made orthogonal first.
    """

    orthogonal: bool = False

    @property
    def kind(self) -> str:
        return "HRA"

    @property
    def settings(self) -> dict[str, float]:
        return {self.entry.name: float(self.orthogonal)}

    def takes(self, m: int, n: int) -> bool:
        return self.entry.shape[0] == n

    def row_map(self, read: Read) -> RowMap:
        vectors = read(self.entry).double()
        unit = torch.linalg.qr(vectors).Q if self.orthogonal else vectors / vectors.norm(dim=0)

        def new_rows(rows: torch.Tensor, top: int, others: RowReader) -> torch.Tensor:
            for vector in unit.T.to(rows):
                rows = rows - 2 * torch.outer(rows @ vector, vector)
            return rows

        return new_rows
