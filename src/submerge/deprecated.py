"""Old public names: they work, and say which name has taken their place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["takes_old_arguments", "warn_renamed"]

T = TypeVar("T")


def warn_renamed(old: str, new: str, level: int = 3) -> None:
    """Warn that `old` is called `new` now, at the line that calls the caller, or `level` calls ago."""
    warnings.warn(f"{old} is deprecated: it is called {new} now", DeprecationWarning, stacklevel=level)


def takes_old_arguments(convert: Callable[[dict[str, Any]], None]) -> Callable[[type[T]], type[T]]:
    """Return a decorator of a dataclass, whose keyword arguments `convert` brings up to date, in place.

    The dataclass itself knows the new names alone, so that `replace`, `fields` and equality do, too.
    """

    def decorate(cls: type[T]) -> type[T]:
        init: Callable[..., None] = cls.__init__

        @wraps(init)
        def initialise(self: T, *args: Any, **given: Any) -> None:
            convert(given)
            init(self, *args, **given)

        setattr(cls, "__init__", initialise)  # noqa: B010 — a plain assignment has no valid type
        return cls

    return decorate
