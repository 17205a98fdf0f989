"""How old public names say that they have a new one."""

from __future__ import annotations

import warnings

__all__ = ["warn_renamed"]


def warn_renamed(old: str, new: str) -> None:
    """Warn, at the line that calls the caller, that `old` is called `new` now."""
    warnings.warn(f"{old} is deprecated: it is called {new} now", DeprecationWarning, stacklevel=3)
