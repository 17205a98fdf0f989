"""What all gated modules of a model share: the assignment in force, and what was computed before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from submerge.gating._assignment import Assignment
from submerge.gating._cache import Recent

__all__ = ["Gate"]


class Gate:
    """The state that all gated modules of a model share.

    While `assignment` is None every gated module is the plain module of the checkpoint; within `over` it runs
    with the updates that the assignment gives its rows. There is one for all threads: who runs a model does
    so within its `turn`.

    Examples:
        >>> import torch
        >>> from submerge.gating import ConstantAssignment, Gate, Recent
        >>> gate = Gate(Recent(0))
        >>> with gate.over(ConstantAssignment(torch.ones(2))):
        ...     gate.assignment.acts_on("layers.0.mlp.up_proj")
        True
        >>> gate.assignment is None
        True
    """

    def __init__(self, cache: Recent) -> None:
        self.cache = cache
        self.assignment: Assignment | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    @property
    def turn(self) -> AbstractContextManager[object]:
        """What calls of several threads wait for; nothing while torch compiles: it traces no locks."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    @contextmanager
    def over(self, assignment: Assignment) -> Iterator[None]:
        """Run what is inside with this assignment in force."""
        before, self.assignment = self.assignment, assignment
        try:
            yield
        finally:
            self.assignment = before
