"""What was measured of adapters' null spaces: figures, tables, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["NullSpaceCurve", "NullSpaceMatrix"]


@dataclass(frozen=True, eq=False)
class NullSpaceMatrix:
    """The ratio of each data set's activations for each adapter, at each module that was measured.

    Attributes:
        data: names of the J data sets.
        adapters: names of the K adapters.
        modules: names of the M modules whose inputs were measured, in the adapters' order.
        values: ω [M, J, K], means over positions, in float64; NaN where the adapter does not change the
            module, has no null space there, or no input came.
        isotropic: √(1 − r/n) [M, K], about the ratio of inputs without any structure.
        counts: positions that were measured of each data set.
        left_out: what of the adapters the model does not have.

    Examples:
        >>> import torch
        >>> from submerge import NullSpaceMatrix
        >>> values = torch.tensor([[[0.97, 0.99], [0.98, 0.96]]])
        >>> level = torch.full((1, 2), 0.99)
        >>> found = NullSpaceMatrix(("a", "b"), ("A", "B"), ("layers.3.q",), values, level, (64, 64))
        >>> print(found)
        data             A        B
        a          0.97000  0.99000
        b          0.98000  0.96000
        isotropic  0.99000  0.99000
        >>> found.nearest
        ('A', 'B')
    """

    data: tuple[str, ...]
    adapters: tuple[str, ...]
    modules: tuple[str, ...]
    values: torch.Tensor
    isotropic: torch.Tensor
    counts: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    @property
    def matrix(self) -> torch.Tensor:
        """The mean over the modules that the adapter changes, [J, K]."""
        return self.values.nanmean(0)

    @property
    def nearest(self) -> tuple[str, ...]:
        """The adapter of each data set whose ratio is furthest below its isotropic level."""
        places = (self.matrix - self.isotropic.nanmean(0)).argmin(1).tolist()
        return tuple(self.adapters[k] for k in places)

    def table(self, module: str | None = None) -> str:
        """Return the matrix as text, over all modules or of one."""
        at = slice(None) if module is None else [self.modules.index(module)]
        rows = zip(self.data, self.values[at].nanmean(0).tolist(), strict=True)
        level = ("isotropic", self.isotropic[at].nanmean(0).tolist())
        return _table("data", self.adapters, [*rows, level])

    def __str__(self) -> str:
        return self.table()


@dataclass(frozen=True, eq=False)
class NullSpaceCurve:
    """ω(λ) of each adapter on its own inputs, with that adapter alone added to the base λ times.

    Attributes:
        adapters: names of the K adapters.
        scales: the S values of λ, in ascending order.
        modules: names of the modules whose inputs were measured.
        values: ω [K, S], means over positions and modules, in float64.

    Examples:
        >>> import torch
        >>> from submerge import NullSpaceCurve
        >>> values = torch.tensor([[0.9747, 0.9751, 0.9756], [0.98, 0.97, 0.96]])
        >>> curve = NullSpaceCurve(("a", "b"), (0.0, 0.5, 1.0), ("layers.3.q",), values)
        >>> curve.falls
        (False, True)
        >>> print(curve)
        adapter    λ = 0  λ = 0.5    λ = 1
        a        0.97470  0.97510  0.97560
        b        0.98000  0.97000  0.96000
        a: ω is smallest at λ = 0, and does not fall with λ: minimising it would weaken this adapter
    """

    adapters: tuple[str, ...]
    scales: tuple[float, ...]
    modules: tuple[str, ...]
    values: torch.Tensor

    @property
    def falls(self) -> tuple[bool, ...]:
        """Whether the ratio of each adapter falls from each λ to the next."""
        return tuple(bool((row.diff() < 0).all()) for row in self.values)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each adapter whose ratio does not fall with λ."""
        return tuple(
            self._warning(name, row.tolist())
            for name, row, falls in zip(self.adapters, self.values, self.falls, strict=True)
            if not falls
        )

    def _warning(self, name: str, row: Sequence[float]) -> str:
        best = self.scales[row.index(min(row))]
        text = f"{name}: ω is smallest at λ = {best:g}, and does not fall with λ"
        return f"{text}: minimising it would weaken this adapter" if best < 1 else text

    def __str__(self) -> str:
        """Return the curves as a table, with the warnings below."""
        columns = [f"λ = {scale:g}" for scale in self.scales]
        table = _table("adapter", columns, zip(self.adapters, self.values.tolist(), strict=True))
        return "\n".join([table, *self.warnings])


def _table(corner: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[float]]]) -> str:
    """Return rows of numbers under the names of their columns, as text."""
    lines = [(corner, *columns)] + [(name, *(f"{x:.5f}" for x in values)) for name, values in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
