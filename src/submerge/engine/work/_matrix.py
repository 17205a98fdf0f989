"""The pass that merges one weight matrix by its singular vectors, from the updates of all inputs at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from submerge.algebra import Dense, LowRank, Streamed, Update, Zero, weighted_sum
from submerge.deferred import torch
from submerge.engine.plan import HELD, TensorPlan
from submerge.engine.work._adapter_edit import AddedProduct
from submerge.engine.work._chunk_reader import ChunkReader
from submerge.engine.work._input_reader import InputReader
from submerge.engine.work._passes import Pass, single
from submerge.errors import WorkError
from submerge.methods import Merged
from submerge.store import torch_dtype

__all__ = ["decomposing", "decomposition", "elements", "input_updates"]


@contextmanager
def decomposing(name: str) -> Iterator[None]:
    """Turn torch's failure to decompose a tensor into a `WorkError` that names it."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        what = "its singular vectors cannot be computed"
        hint = "do the inputs hold NaN or Inf?"
        raise WorkError(f"tensor {name}: {what} ({error}) — {hint}") from error


def decomposition(reader: ChunkReader) -> Pass:
    """Return the pass whose result is what the method makes of a matrix: a `Merged`.

    One worker does it: singular vectors have no ranges. The pool puts the pass that writes the result before
    all other work, so that no more results are held at once than there are workers.
    """
    return single(reader.plan.numel, lambda _: _merged(reader))


def _merged(reader: ChunkReader) -> Merged:
    """Return what the method makes of the updates; raise `WorkError` where they cannot be decomposed."""
    plan, method = reader.plan, reader.plan.method
    assert method is not None  # what made it a matrix
    with decomposing(plan.name):
        updates = input_updates(reader)
        if method.matrix is not None:
            partner = input_updates(reader.partner) if reader.partner else None
            merged = method.matrix(updates, replace(plan.spec, partner=partner), plan.values)
        else:
            assert method.coefficients is not None
            merged = Merged(weighted_sum(updates, list(method.coefficients(plan.values))))
        return _with_factors(merged, plan) if plan.has_streams else merged


def _with_factors(merged: Merged, plan: TensorPlan) -> Merged:
    """Return the result with the update's factors for the bank, where they take less than the base's values.

    From them the base's values follow, with which tokens of modalities run: W_0 = W − left · right.
    """
    update, origin = merged.update, plan.origin
    if not isinstance(update, LowRank) or origin is None:
        return merged
    factors = {"left": update.left.float(), "right": update.right.float()}
    if sum(factor.nbytes for factor in factors.values()) > origin.entry.nbytes:
        return merged
    return replace(merged, bank={**merged.bank, **factors})


def input_updates(reader: ChunkReader) -> list[Update]:
    """Return each input's update [m, n]: factors, or values that are held where all of them fit."""
    relative = [member.relative or _is_on_origin(reader, member) for member in reader.inputs]
    held = relative.count(False) * reader.plan.numel <= HELD
    return [_update(reader, *each, held) for each in zip(reader.inputs, relative, strict=True)]


def _is_on_origin(reader: ChunkReader, member: InputReader) -> bool:
    """Return whether a member's own values are the origin's, bit for bit: then its update is its adapter's.

    Only a plan that `compares` asks this, for files of their own may hold what the base's file holds.
    """
    if not reader.plan.compares or not (member.edit is None or isinstance(member.edit, AddedProduct)):
        return False
    return reader.origin is not None and member.reads_as(reader.origin, reader.plan.numel)


def _update(reader: ChunkReader, member: InputReader, relative: bool, held: bool) -> Update:
    sides = reader.plan.sides
    if relative and member.edit is None:
        return Zero(sides)
    if relative and isinstance(member.edit, AddedProduct) and member.edit.is_matrix:
        return LowRank(*member.edit.factors.pair)

    dtype = torch_dtype(reader.code)

    def rows(start: int, stop: int) -> torch.Tensor:
        width = sides[1]
        values = member.difference(reader.origin, start * width, stop * width, dtype)
        return values.view(-1, width)

    streamed = Streamed(sides, rows, dtype)
    return Dense(streamed.dense()) if held else streamed


def elements(update: Update, start: int, count: int) -> torch.Tensor:
    """Return a run of the flattened update's elements."""
    width = update.shape[1]
    top = start // width
    rows = update.rows(top, -(-(start + count) // width)).reshape(-1)
    return rows[start - top * width : start - top * width + count].clone()  # the caller may add to it
