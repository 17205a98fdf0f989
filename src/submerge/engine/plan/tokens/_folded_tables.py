"""Tables with what adapters trained of them, where their rows move, or other models get them."""

from __future__ import annotations

from collections.abc import Collection

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tokens._table_rows import TableRuns
from submerge.engine.plan.tokens._tables import token_tables
from submerge.errors import Problem, RequestError, few
from submerge.store import Checkpoint, Part, Rows, with_folded_table

__all__ = ["with_folded_tables"]


def with_folded_tables(inputs: Inputs, runs: TableRuns) -> Inputs:
    """Return the inputs with adapters' updates in the tables whose rows others get, or that move.

    So a row is as its owner trained it, wherever it is. All other tables have the updates beside them, which
    are known without the values. Raises `RequestError` for a trained row that is no token's.
    """
    return inputs.of_models(
        [_with_folded(model, position, inputs, runs) for position, model in enumerate(inputs.models)]
    )


def _with_folded(model: Checkpoint, position: int, inputs: Inputs, runs: TableRuns) -> Checkpoint:
    adapter, embedding = model.adapter, model.tensors.get(runs.embedding)
    if adapter is None or embedding is None or position not in inputs.involved:
        return model
    for name in token_tables(model.tensors, embedding.shape[0]):
        part = adapter.parts.get(name)
        if part is None:
            continue
        is_own = runs.is_own(position, name, runs.of(position, name))
        if is_own and not runs.gives(position, _rows(part, embedding.shape[0])):
            continue
        if isinstance(part, Rows):
            _check_rows(part, position, name, model, runs)
        model = with_folded_table(model, name)
    return model


def _rows(part: Part, count: int) -> Collection[int]:
    """Return the rows that a part changes, of so many."""
    return part.indices if isinstance(part, Rows) else range(count)


def _check_rows(part: Rows, position: int, name: str, model: Checkpoint, runs: TableRuns) -> None:
    """Raise `RequestError` where a row was trained that no token of the model has: it would be left out."""
    unnamed = [str(row) for row in part.indices if not runs.names(position, row)]
    if unnamed:
        assert model.adapter is not None  # it trained them
        what = f"the adapter trained rows of {name} that no token of its tokenizer has ({few(unnamed)})"
        hint = "save the tokenizer that it was trained with into its folder"
        raise RequestError(Problem(what, str(model.adapter.path), hint))
