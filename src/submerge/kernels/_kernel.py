"""A kernel: one loop over arrays of one dimension, and the numpy expressions that give the same bits.

The loop is plain Python that numba compiles at the first call with arrays of new types, and caches on disk.
It is written so that LLVM can vectorise it without a change of any result: no fast-math, so that nothing is
fused or regrouped, and slices of one dimension, whose addresses advance by one element.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["Kernel", "kernel", "uses_numba"]

VARIABLE = "SUBMERGE_KERNELS"
"""The environment variable that chooses: `numpy` never compiles."""

Function = Callable[..., Any]


class Kernel:
    """Calls the compiled loop, or the numpy expressions where numba cannot be used.

    Attributes:
        loop: the Python source of the compiled function, slow when it is called itself.
        reference: numpy expressions with the same bits.
    """

    def __init__(self, loop: Function, reference: Function) -> None:
        self.loop = loop
        self.reference = reference
        self.__doc__ = loop.__doc__
        self.__name__ = loop.__name__
        self._chosen: Function | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run on arrays of one dimension, and numbers of their type: numba would go on in float64."""
        return (self._chosen or self._choose())(*arguments)

    def _choose(self) -> Function:
        self._chosen = self.compiled() if uses_numba() else self.reference
        return self._chosen

    def compiled(self) -> Function:
        """Return the loop as numba compiles it."""
        import numba

        function: Function = numba.njit(self.loop, cache=True, nogil=True, error_model="numpy")
        return function


def uses_numba() -> bool:
    """Return whether kernels are compiled."""
    return os.environ.get(VARIABLE, "") != "numpy"


def kernel(reference: Function) -> Callable[[Function], Kernel]:
    """Return the decorator that makes a kernel of a loop and of its `reference`."""
    return lambda loop: Kernel(loop, reference)
