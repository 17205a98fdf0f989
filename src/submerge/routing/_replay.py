"""One pass: the first blocks run once, as the static merge, and the choice is made from what they show.

With `passes: one` the blocks up to the last that is looked at are the same for all tasks. The first pass ends
behind them, and in the second their outputs stand for them, in the order in which the samples then run:

    h_k = blocks 1…k of θ_MT,    S from the inputs of their maps,    y = blocks k+1…L of θ_0 + Δ_S, from h_k

so that a routed pass costs what one pass of the model does, and the low-rank products. It is an approximation
to the paper's two passes, in which the first blocks get the tasks' updates, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from submerge.gating import Gate, StopForward, cut, reordered

__all__ = ["Replay"]


class Replay:
    """The first blocks of a model, whose outputs are recorded in one pass and given back in the next.

    `gated` are the names of all gated modules, and `shared` those of them that ran in the recorded pass, and
    are the same for all tasks.
    """

    def __init__(self, gate: Gate, blocks: Sequence[nn.Module], gated: frozenset[str]) -> None:
        self.gate, self.gated = gate, gated
        self.recorded: list[Any] | None = None
        self.shared: frozenset[str] = frozenset()
        self._outputs: list[Any] | None = None
        self._recording = False
        self._size = 0
        for number, block in enumerate(blocks):
            block.forward = _BlockForward(self, block, number, number == len(blocks) - 1)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the blocks' outputs inside; the pass ends after the last of them."""
        self.recorded, self._recording = [], True
        try:
            yield
        finally:
            self._recording = False

    def take(self) -> list[Any] | None:
        """Return what was recorded, which is then forgotten; None where nothing was: tasks were named."""
        outputs, self.recorded = self.recorded, None
        return outputs

    @contextmanager
    def playing(self, outputs: list[Any] | None, order: torch.Tensor | None, size: int) -> Iterator[None]:
        """Let recorded outputs stand for the blocks inside, in the order in which `size` samples run."""
        if outputs is not None and order is not None:
            outputs = [reordered(out, order, size) for out in outputs]
        self._outputs, self._size = outputs, size
        try:
            yield
        finally:
            self._outputs = None

    def run(self, block: _BlockForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a block's output, from the record where that is played."""
        if self._outputs is not None:
            out = self._outputs[block.number]
            window = self.gate.assignment.window if self.gate.assignment else None
            return out if window is None else cut(out, window, self._size)  # of a batch run span by span
        out = type(block.module).forward(block.module, *args, **kwargs)
        if self._recording and self.recorded is not None:
            self.recorded.append(out)
            if block.last:
                raise StopForward
        return out


class _BlockForward:
    """The forward of one of the blocks; an object, so that a copy of the model has blocks of its own."""

    def __init__(self, replay: Replay, module: nn.Module, number: int, last: bool) -> None:
        self.replay, self.module, self.number, self.last = replay, module, number, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replay.run(self, args, kwargs)
