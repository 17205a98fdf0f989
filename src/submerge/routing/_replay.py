"""One pass: the first blocks run once, as the fixed merge, and the choice is made from what they show.

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

from submerge.gating._batch import cut, reordered
from submerge.gating._gate import Gate
from submerge.routing._sites import Done

__all__ = ["Replay"]


class Replay:
    """The first blocks of a model, whose outputs are recorded in one pass and given back in the next."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.recorded: list[Any] | None = None
        self._outputs: list[Any] | None = None
        self._recording = False
        self._size = 0
        self.window: slice | None = None
        """The samples of the batch that run, where that is not all of them."""
        for number, block in enumerate(blocks):
            block.forward = _Block(self, block, number, number == len(blocks) - 1)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the blocks' outputs inside; the pass ends after the last of them."""
        self.recorded, self._recording = [], True
        try:
            yield
        finally:
            self._recording = False

    @contextmanager
    def playing(self, gate: Gate, order: torch.Tensor | None, size: int, *, whole: bool) -> Iterator[None]:
        """Let the sorted recorded outputs stand for the blocks inside, unless the `whole` model is to run."""
        outputs, self.recorded = self.recorded, None
        if outputs is None:  # nothing was routed: the tasks were named
            yield
            return
        gate.sharing = True
        self._size = size
        if not whole:
            self._outputs = outputs if order is None else [reordered(out, order, size) for out in outputs]
        try:
            yield
        finally:
            self._outputs, gate.sharing = None, False

    def run(self, block: _Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a block's output, from the record where that is played."""
        if self._outputs is not None:
            out = self._outputs[block.number]
            return out if self.window is None else cut(out, self.window, self._size)
        out = type(block.module).forward(block.module, *args, **kwargs)
        if self._recording and self.recorded is not None:
            self.recorded.append(out)
            if block.last:
                raise Done
        return out


class _Block:
    """The forward of one of the blocks; an object, so that copies of the model are whole."""

    def __init__(self, replay: Replay, module: nn.Module, number: int, last: bool) -> None:
        self.replay, self.module, self.number, self.last = replay, module, number, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replay.run(self, args, kwargs)
