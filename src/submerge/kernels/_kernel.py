"""A kernel: one loop over arrays of one dimension, and the numpy expressions that give the same bits.

The loop is plain Python that numba compiles at the first call with arrays of new types, and caches on disk.
It is written so that LLVM can vectorise it without a change of any result: no fast-math, so that nothing is
fused or regrouped, and slices of one dimension, whose addresses advance by one element.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from submerge.deferred import np
from submerge.environment import check_environment, kernels_choice

__all__ = ["Kernel", "compiling_for", "kernel", "uses_numba", "worth_compiling"]

DISABLED = "NUMBA_DISABLE_JIT"
"""With this variable of numba's own, loops would be run by Python, which takes thousands of times as long."""
WORTHWHILE = 1 << 24
"""Elements of a merge from which on kernels are compiled: the import of numba, and the code that is read from
its cache, take as long as numpy needs for about so many."""

Function = Callable[..., Any]


class _Choice:
    """Whether loops are compiled: of the whole process, for either way gives the same bytes.

    Attributes:
        possible: false by the environment, or after numba failed.
        compiles: false, too, where what is computed now is too little to be worth it.
    """

    def __init__(self) -> None:
        check_environment()
        self.compiles = self.possible = kernels_choice() != "numpy" and not _is_disabled()

    def fail(self, error: BaseException) -> None:
        """Go on with numpy, and say why: once, for then nothing is compiled any more."""
        self.compiles = self.possible = False
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        warnings.warn(
            f"numba cannot be used ({reason}): numpy computes the same bytes, and takes several times as "
            f"long — pip install --upgrade numba, or set SUBMERGE_KERNELS=numpy to go without",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_disabled() -> bool:
    """Return whether numba is told to compile nothing; it says itself of a value that it cannot read."""
    try:
        return int(os.environ.get(DISABLED) or 0) != 0
    except ValueError:
        return False


_choice = _Choice()


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
        self._function: Function | None = None
        self._called: Function | None = None  # by other kernels

    @property
    def _numba_type_(self) -> Any:
        """What numba takes a kernel for in the loop of another one, whose cache then has both."""
        import numba

        self._called = self._called or self._njit(cache=False)
        return numba.types.Dispatcher(self._called)

    def __call__(self, *arguments: Any) -> Any:
        """Run on arrays of one dimension, and numbers of their type: numba would go on in float64."""
        if _choice.compiles:
            try:
                return (self._function or self.compiled())(*arguments)
            except Exception:  # numba compiles at the first call: no loop has begun
                return self._without_cache(*arguments)
        return self._by_numpy(*arguments)

    def _without_cache(self, *arguments: Any) -> Any:
        """Compile without a cache, which cannot be written or read; if that fails, too, go on with numpy."""
        try:
            return self.compiled(cache=False)(*arguments)
        except Exception as error:
            _choice.fail(error)
        return self._by_numpy(*arguments)

    def _by_numpy(self, *arguments: Any) -> Any:
        with np.errstate(all="ignore"):  # a compiled loop warns of nothing either
            return self.reference(*arguments)

    def compiled(self, *, cache: bool = True) -> Function:
        """Return the loop as numba compiles it; with a cache on disk, where there can be one."""
        self._function = self._njit(cache=cache)
        return self._function

    def _njit(self, *, cache: bool) -> Function:
        import numba
        import numpy

        self.loop.__globals__["np"] = numpy  # some checks of numba's ask for the module itself
        function: Function = numba.njit(self.loop, cache=cache, nogil=True, error_model="numpy")
        return function


def uses_numba() -> bool:
    """Return whether kernels are compiled."""
    return _choice.compiles


@contextmanager
def compiling_for(elements: int) -> Iterator[None]:
    """Compile kernels inside where so many elements are to be merged that it is worth it.

    numba is then imported at once, so that forked workers need not. Either way gives the same bytes.
    """
    before, _choice.compiles = _choice.compiles, worth_compiling(elements)
    try:
        if _choice.compiles:
            import_numba()
        yield
    finally:
        _choice.compiles = before and _choice.possible


def worth_compiling(elements: int) -> bool:
    """Return whether kernels are compiled where so many elements are to be merged."""
    return _choice.possible and (elements >= WORTHWHILE or kernels_choice() == "numba")


def import_numba() -> None:
    """Import numba; where that fails, say so, and go on with numpy."""
    try:
        with _without_collection():
            import numba  # noqa: F401

            _import_registries()
    except Exception as error:  # it is not there; or does not know this Python, this numpy, this processor
        _choice.fail(error)


def _import_registries() -> None:
    """Import what numba would import at its first call, but scipy's linear algebra.

    numba asks whether a BLAS is there by that import, which takes longer than all the rest, and no kernel
    uses one. It asks again before it calls one. scipy itself, which has it, numba has imported already.
    """
    if "scipy" not in sys.modules:
        return
    with suppress(ImportError, AttributeError):  # another version of numba, which has other names
        from numba.np import linalg

        ensure_blas, linalg.ensure_blas = linalg.ensure_blas, lambda: None
        try:
            import numba.np.arraymath
        finally:
            linalg.ensure_blas = ensure_blas
        numba.core.registry.cpu_target.target_context.refresh()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage inside: an import makes many objects, and lets go of few."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def kernel(reference: Function) -> Callable[[Function], Kernel]:
    """Return the decorator that makes a kernel of a loop and of its `reference`."""
    return lambda loop: Kernel(loop, reference)
