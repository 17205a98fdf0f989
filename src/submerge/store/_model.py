"""What a recipe names: a model, an adapter, or an adapter on a model."""

from __future__ import annotations

import os
from pathlib import Path

from submerge.store._adapter import Adapter, is_adapter, open_adapter
from submerge.store._checkpoint import Checkpoint, open_checkpoint
from submerge.store._choice import HoldsAdapterError
from submerge.store._spec import locate

__all__ = ["open_model", "split_spec"]


def split_spec(spec: str, root: Path) -> tuple[str, str | None]:
    """Return (model, adapter) of `model+adapter`, or (spec, None); an existing path is what it seems."""
    if "+" not in spec or (root / spec).exists():
        return spec, None
    model, _, adapter = spec.partition("+")
    return model, adapter


def open_model(
    spec: str, *, root: Path, allow_pickle: bool = False, download: bool = True
) -> Checkpoint | Adapter:
    """Return the checkpoint or the adapter, whichever it is, that a spec without `+` names."""
    arguments = {"root": root, "allow_pickle": allow_pickle, "download": download}
    place = locate(spec, root)
    readable = isinstance(place, Path) and os.access(place, os.R_OK | os.X_OK)
    if isinstance(place, Path) and readable and is_adapter(place):
        return open_adapter(spec, **arguments)  # type: ignore[arg-type]
    try:
        return open_checkpoint(spec, **arguments)  # type: ignore[arg-type]
    except HoldsAdapterError:
        return open_adapter(spec, **arguments)  # type: ignore[arg-type]
