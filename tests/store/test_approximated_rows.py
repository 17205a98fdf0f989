"""Rows that are combinations of a model's, as a donor's are of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from submerge.algebra import matching_pursuit
from submerge.store import (
    ApproximatedRows,
    Checkpoint,
    DonorCodes,
    FileTable,
    StoredTable,
    TensorEntry,
    byte_view,
    dtype_named,
)

DRAW = torch.Generator().manual_seed(0)


def stored(values: torch.Tensor) -> StoredTable:
    dtype = dtype_named(values.dtype)
    assert dtype is not None
    entry = TensorEntry("t", dtype, tuple(values.shape), None, 0, 0)
    model = Checkpoint("tables", Path("tables"), None, {"t": entry}, {}, memory={"t": values})
    return StoredTable(partial(model.source, "t"), entry.shape, dtype)


def test_rows_are_read_by_their_numbers() -> None:
    values = torch.randn(9, 4, generator=DRAW).bfloat16()
    with FileTable() as files:
        for numbers in ([0, 1, 2, 7, 3, 4], [8], []):
            assert torch.equal(stored(values).rows(numbers, files), values[numbers])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_they_have_the_donors_coefficients(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("submerge.store._approximated_rows._BLOCK", 40)
    donor, model = torch.randn(20, 6, generator=DRAW), torch.randn(15, 5, generator=DRAW).to(dtype)
    new, shared, own = [3, 9, 12, 4], [0, 1, 2, 7, 8, 19, 13], [5, 1, 14, 0, 9, 3, 2]
    codes = DonorCodes(stored(donor), new, shared, 3)
    rows = ApproximatedRows(stored(model), own, codes)
    plain = matching_pursuit(donor[new], donor[shared], 3)
    of_model = model[own].double()[plain.indices]
    expected = torch.einsum("nk,nkd->nd", plain.coefficients, of_model).to(dtype)
    with FileTable() as files:
        whole = rows.value(files)
        torch.testing.assert_close(whole, expected)
        values, source = torch.empty(20, dtype=dtype), rows.open(files)
        for start in range(0, 20, 3):
            count = min(3, 20 - start)
            source.read(start, count, byte_view(values[start : start + count]))
        assert torch.equal(values, whole.flatten())
        assert codes.value(files) is codes.value(files)
