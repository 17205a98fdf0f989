"""The names of earlier versions: what was `submerge.runtime` is `gating`, `routing` and `serving` now."""

from importlib import import_module
from typing import Any

from submerge.deprecated import warn_renamed

_MOVED = {
    "Factors": ("submerge.gating", "GatedFactors"),
    "Gate": ("submerge.gating", "Gate"),
    "GatedLayer": ("submerge.gating", "GatedModule"),
    "Kept": ("submerge.gating", "GatedUpdate"),
    "Routing": ("submerge.routing", "Routing"),
    "Span": ("submerge.gating", "Span"),
    "Whole": ("submerge.gating", "GatedDense"),
    "gate_layer": ("submerge.gating", "gate_module"),
    "load": ("submerge.serving", "load"),
}


def __getattr__(name: str) -> Any:
    """Return what a name of an earlier version is called now, with a `DeprecationWarning`."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package, now = _MOVED[name]
    warn_renamed(f"submerge.runtime.{name}", f"{package}.{now}")
    return getattr(import_module(package), now)


def __dir__() -> list[str]:
    return sorted(_MOVED)
