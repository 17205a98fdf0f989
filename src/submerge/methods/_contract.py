"""What a method gets, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from submerge.algebra import Chunk, FusedLayout, LayerParameter, Moment, Reduction, Update
from submerge.deferred import npt, torch
from submerge.deprecated import takes_old_arguments, warn_renamed

__all__ = ["Fold", "FoldPlan", "MatrixFold", "Merged", "TensorSpec", "Values"]


@dataclass(frozen=True)
class TensorSpec:
    """The tensor that a fold is made for: its name, its shape, and how many updates there are.

    A `table` has two dimensions, and is no linear map: its rows are looked up, or are logits. Of methods with
    `moments`, `moments` has the second moments of a layer's inputs for each update; None where there are
    none. `layer` says which parameter of the layer the tensor is, and `partner` has the updates of its other
    one, where models change it: see `submerge.algebra.merge_layer`. `fused` says which rows of a matrix are
    those of each of several maps, where an option `fused` of the method is `split`; None where the matrix is
    to be merged as it is.

    Examples:
        >>> from submerge.methods import TensorSpec
        >>> TensorSpec("model.norm.weight", (64,), count=3).numel
        64
    """

    name: str
    shape: tuple[int, ...]
    count: int
    table: bool = False
    moments: Sequence[Moment] | None = None
    layer: LayerParameter | None = None
    partner: Sequence[Update] | None = None
    fused: FusedLayout | None = None

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)


Values: TypeAlias = Mapping[str, Any]
"""An option's value for one tensor: a plain value, or (scope `model`) a list with one a model."""

Fold: TypeAlias = Callable[[Chunk], "npt.NDArray[Any] | torch.Tensor"]
"""Maps a chunk to the merged update of its elements, shape [n], an array or a tensor; may overwrite what the
chunk holds, which is `chunk.values` for numpy and `chunk.updates` for torch."""

FoldPlan: TypeAlias = Generator[Reduction[Any, Any], Any, Fold]
"""Yields the reductions that it needs over the tensor, receives their results, returns the fold."""


def _to_bank(given: dict[str, Any]) -> None:
    if "kept" in given:
        warn_renamed("Merged(kept=…)", "Merged(bank=…)", 4)
        given.setdefault("bank", given.pop("kept"))


@takes_old_arguments(_to_bank)
@dataclass(frozen=True)
class Merged:
    """The merged update of one weight matrix, and figures about it for the report.

    The figure `warning`, if there is one, is a sentence about the matrix. A merge reports each such sentence
    once, with the names of the matrices that have it.

    `bank` is what the method's gate needs of the matrix at run time, by a name of the method's own.

    Examples:
        >>> import torch
        >>> from submerge.algebra import Dense
        >>> from submerge.methods import Merged
        >>> merged = Merged(Dense(torch.ones(3, 2)), {"rank": 1})
        >>> merged.update.shape, merged.figures
        ((3, 2), {'rank': 1})
    """

    update: Update
    figures: Mapping[str, Any] = field(default_factory=dict)
    bank: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def kept(self) -> Mapping[str, torch.Tensor]:
        """Deprecated: `bank`."""
        warn_renamed("Merged.kept", "Merged.bank")
        return self.bank


MatrixFold: TypeAlias = Callable[[Sequence[Update], TensorSpec, Values], Merged]
"""Maps the models' updates of one weight matrix, in the recipe's order, to the merged update."""
