"""What all gated modules of a model share: the assignment in force, and what was computed before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from submerge.gating._assignment import Assignment
from submerge.gating._cache import Recent

__all__ = ["Gate"]


class Gate:
    """The state that all gated modules of a model share.

    While `assignment` is None every gated module is the plain module of the checkpoint; within `over` it runs
    with the updates that the assignment gives its rows.
    """

    def __init__(self, cache: Recent) -> None:
        self.cache = cache
        self.assignment: Assignment | None = None

    @contextmanager
    def over(self, assignment: Assignment) -> Iterator[None]:
        """Run what is inside with this assignment in force."""
        before, self.assignment = self.assignment, assignment
        try:
            yield
        finally:
            self.assignment = before
