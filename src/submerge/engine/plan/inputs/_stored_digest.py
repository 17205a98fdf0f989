"""How a model of a merge is known again, as that of which something was measured or learned."""

from __future__ import annotations

from collections.abc import Sequence

from submerge.errors import RequestError, few
from submerge.store import Checkpoint, MomentFile, PrototypeFile, model_digest, open_checkpoint

__all__ = ["stored_digest", "unchecked"]


def stored_digest(model: Checkpoint) -> str | None:
    """Return the digest of a model as its files have it, without its adapter; None where they are not there.

    In a plan a model may have other names and other rows than in its files, by what the recipe asks for.
    Where adapters alone make an adapter, the base has no values: it is opened here.
    """
    model = model.under or model
    if model.pending:
        return None
    if model.virtual is not None or not model.path.exists():
        return model_digest(model) if model.virtual or model.memory else None
    try:
        return model_digest(open_checkpoint(str(model.path)))
    except RequestError:
        return None


def unchecked(files: Sequence[MomentFile | PrototypeFile], what: str) -> list[str]:
    """Return that some files do not tell of which models they are; `what` is what they leave open."""
    names = [file.path.name for file in files if file.source.get("model_digest") is None]
    return [f"{few(names)}: whether {what} was not checked: an earlier version wrote them"] if names else []
