"""The base that all tasks of a state have in common, and how it is known again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from submerge.continual._manifest import BaseRecord
from submerge.errors import Problem, RequestError
from submerge.recipe import same_model
from submerge.store import Adapter, Checkpoint, HoldsAdapterError, model_digest, open_checkpoint

__all__ = ["adapter_warnings", "base_record", "open_base", "opened_base"]

MOVED = "if the base was moved, say where it is now with --base"


def base_record(base: Checkpoint) -> BaseRecord:
    """Return how a state knows its base: a folder by its full path, a model of the Hub by its name."""
    model = base.label.partition("@")[0] if base.revision else str(base.path.resolve())
    return BaseRecord(model, base.revision, model_digest(base))


def opened_base(spec: str | Path) -> Checkpoint:
    """Return a model that may be a base; raise `RequestError` where it cannot be opened, as an adapter."""
    try:
        return open_checkpoint(str(spec))
    except HoldsAdapterError as error:
        hint = "name the model that it was trained on, and add the adapter as a task"
        raise RequestError([replace(problem, hint=hint) for problem in error.problems]) from None


def open_base(record: BaseRecord, instead: str | Path | None = None) -> Checkpoint:
    """Return the base of a state, from another place if one is given.

    Raises `RequestError` where it is gone, or another model than the one that the state was begun with.
    """
    spec = str(instead or record.spec)
    try:
        base = opened_base(spec)
    except RequestError as error:
        raise RequestError([replace(p, hint=f"{p.hint}; {MOVED}") for p in error.problems]) from None
    if model_digest(base) != record.digest:
        what = "is another model than the base with which the state was begun"
        raise RequestError(Problem(what, spec, f"that was {record.spec}; {MOVED}"))
    return base


def adapter_warnings(adapter: Adapter, record: BaseRecord, base: Checkpoint) -> list[str]:
    """Return that an adapter names another base than the state's, if it does.

    The base that it names may be the same in another precision, or quantised. Raises `RequestError` where it
    is there, and is another model.
    """
    named = adapter.base
    if not named or same_model(named) == record.model:
        return []
    if Path(named).is_dir():
        other = _unquantised(named)
        if other is not None and model_digest(other) == record.digest:
            return []
        if other is not None and not _differs_in_precision(other, base):
            what = f"was trained on {named}, which is another model than the state's base {record.model}"
            raise RequestError(Problem(what, str(adapter.path), "begin a state of that base for it"))
    elif Path(named).name == Path(record.model).name:
        return []
    return [
        f"{adapter.path} was trained on {named}, and the state's base is {record.model}: are they the same?"
    ]


def _unquantised(folder: str) -> Checkpoint | None:
    """Return the model of a folder; None where its weights cannot be compared, as those in 4 bits."""
    try:
        return open_checkpoint(folder)
    except RequestError:
        return None


def _differs_in_precision(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether two models have the same tensors, in other dtypes."""
    shapes, dtypes = (
        [{name: getattr(entry, field) for name, entry in model.tensors.items()} for model in (one, other)]
        for field in ("shape", "dtype")
    )
    return shapes[0] == shapes[1] and dtypes[0] != dtypes[1]
