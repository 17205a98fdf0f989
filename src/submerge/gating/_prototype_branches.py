"""K parameter sets of one projector, whose outputs are mixed by what the projector is given (CPM of MAny).

An input of the model, such as an image, is one row of the projector's input E(x) [rows, positions, d], or
several: the tiles of a large image, the frames of a video. All its rows have the weights of the input,

    Z(x) = Σ_k α_k(x) g_k(E(x)),    α(x) = softmax(s(v(x)) / τ),    v(x) = pooled E(x)

where s_k is the cosine of v(x) with the prototypes of set k, or another score of it. Nothing but the
projector's own call is needed.

Where images of many sizes lie side by side, [Σ n_i, d] or [1, Σ n_i, d], each of them is projected by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from submerge.algebra import GroupScores, similarity_weights
from submerge.errors import Problem, RequestError
from submerge.gating._assignment import ResidentAssignment
from submerge.gating._branches import MixedBranches
from submerge.gating._gate import Gate
from submerge.gating._positions import positions_apart

__all__ = ["ModuleInputs", "PrototypeAssignment", "PrototypeBranches"]


@dataclass(frozen=True)
class ModuleInputs:
    """What is known of the N inputs of the model that one call of a module is for.

    A module's input may have all rows of an input several times over, side by side, as of a batch that was
    expanded for beams.

    Attributes:
        count: N; None where it is not known, so that each row stands for itself.
        rows: of each input, where not all have equally many.
        positions: of each input, where they may lie side by side in one row.
        weights: [N, K], or [1, K] for all, in the place of those that the module would find.
        similarity: [N, K] of something else, as of the text, which counts together with the module's own.
    """

    count: int | None = None
    rows: Sequence[int] = ()
    positions: Sequence[int] = ()
    weights: torch.Tensor | None = None
    similarity: torch.Tensor | None = None

    def rows_of_each(self, rows: int) -> torch.Tensor:
        """Return how many rows each input has, [N]; raise `RequestError` where that does not add up."""
        count = rows if self.count is None else self.count
        known = sum(self.rows) or count
        if not known or rows % known:
            what = f"the projector is given {rows} rows, of which {count} inputs have no whole number each"
            hint = "mix projectors of models that project each input by itself, or give one input at a time"
            raise RequestError(Problem(what, "projectors", hint))
        return torch.tensor(self.rows or [1] * count) * (rows // known)


class PrototypeAssignment(ResidentAssignment):
    """No updates act, and a module mixes the outputs of its parameter sets by what it is given.

    `calls` tell of the module's calls, in their order; a `generate` may repeat them all. Without any, rows
    stand for themselves. After the pass `weights` are those that were used, one [N, K] for each call.
    """

    def __init__(self, calls: Sequence[ModuleInputs] = ()) -> None:
        super().__init__()
        self.calls = tuple(calls)
        self.weights: list[torch.Tensor] = []

    def next_call(self) -> ModuleInputs:
        """Return what is known of the inputs of the call that is not yet in `weights`."""
        return self.calls[len(self.weights) % len(self.calls)] if self.calls else ModuleInputs()


class PrototypeBranches(MixedBranches):
    """Parameter sets whose outputs are mixed by the similarity of each input with the sets' prototypes.

    They are mixed without an assignment in force, too. One with a `mixture` has its weights used.

    Args:
        gate: what all gated modules of the model share.
        sets: of each of K branches the parameters, by their names in the module.
        groups: the score of K groups that an input is weighed by.
        temperature, top: as of `similarity_weights`.
        by_position: whether an input is compared by all its positions side by side, and not by their mean.
    """

    def __init__(
        self,
        gate: Gate,
        sets: Sequence[Mapping[str, torch.Tensor]],
        groups: GroupScores,
        *,
        temperature: float,
        top: int | None = None,
        by_position: bool = False,
    ) -> None:
        super().__init__(gate, sets)
        self.groups, self.by_position = groups, by_position
        self.temperature, self.top = temperature, top

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assignment = self.gate.assignment
        if self._entered or (assignment is not None and assignment.mixture is not None):
            return super().forward(module, *args, **kwargs)
        noted = assignment if isinstance(assignment, PrototypeAssignment) else PrototypeAssignment()
        x, inputs = (args[0] if args else next(iter(kwargs.values()))), noted.next_call()
        if apart := positions_apart(x, inputs.positions):
            return self._apart(module, apart, noted, args, kwargs)
        if x.ndim < 3 and (inputs.count is None or inputs.rows):
            what = f"the projector is given {list(x.shape)}, in which inputs cannot be told apart"
            hint = "call the model itself, with its inputs"
            if inputs.count is not None:  # side by side, and by their sizes others
                hint = "merge with the mean of the projectors: projectors: merged, or --projectors merged"
            raise RequestError(Problem(what, "projectors", hint))
        rows = inputs.rows_of_each(len(x))
        weights = self.weights(x, rows, inputs) if inputs.weights is None else inputs.weights
        weights = weights.expand(len(rows), -1)
        noted.weights.append(weights)
        return self.mix(module, weights.repeat_interleave(rows.to(weights.device), dim=0), args, kwargs)

    def _apart(
        self,
        module: nn.Module,
        apart: tuple[torch.Tensor, ...],
        noted: PrototypeAssignment,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Return the outputs for inputs side by side, each [n_i, d], one after the other as they lie."""
        inputs, count = noted.next_call(), len(apart)
        each = count // len(inputs.positions)
        weights = inputs.weights
        if weights is None:
            own = apart[::each]
            rows = torch.cat(own).unsqueeze(-2)
            weights = self.weights(rows, torch.tensor([len(part) for part in own]), inputs)
        weights = weights.expand(len(inputs.positions), -1)
        noted.weights.append(weights)
        given = args[0] if args else next(iter(kwargs.values()))
        outputs = []
        for number, part in enumerate(apart):
            x = part if given.ndim == 2 else part.unsqueeze(0)
            alone = partial(_of_one, given=given, x=x, number=number, count=count)
            own_kwargs = {name: alone(value) for name, value in kwargs.items()}
            outputs.append(self.blend(module, weights[number // each], tuple(map(alone, args)), own_kwargs))
        return torch.cat(outputs, dim=given.ndim - 2)

    def weights(self, x: torch.Tensor, rows: torch.Tensor, inputs: ModuleInputs) -> torch.Tensor:
        """Return the weights [N, K] of inputs that have `rows` [N] rows each of x."""
        scores = self.groups.scores(self._pooled(x, rows))
        if inputs.similarity is not None:
            scores = self.groups.joined(scores, inputs.similarity.to(scores))
        return similarity_weights(scores, temperature=self.temperature, top=self.top)

    def _pooled(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return what each input is compared by, [N, d], in float32: the mean over its rows."""
        parts = torch.split(x.detach().float(), rows.tolist())
        if not self.by_position:
            return torch.stack([part.flatten(0, -2).mean(0) for part in parts])
        return torch.stack([(part.mean(0) if part.ndim > 2 else part).flatten() for part in parts])


def _of_one(value: Any, *, given: torch.Tensor, x: torch.Tensor, number: int, count: int) -> Any:
    """Return what a module is given of one of several inputs: x in the place of all, one of the sizes."""
    if value is given:
        return x
    has_one_each = isinstance(value, torch.Tensor | list | tuple) and len(value) == count
    return value[number : number + 1] if has_one_each else value
