"""Rows that are computed when they are read: any cut into ranges gives the same values."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from submerge.store import (
    Checkpoint,
    ComputedRows,
    FileTable,
    GatheredRows,
    MeanOfRows,
    RowSource,
    TableRows,
    TensorEntry,
    byte_view,
)

DRAW = torch.Generator().manual_seed(0)
TABLES = {
    "F32": torch.randn(7, 5, generator=DRAW),
    "F64": torch.randn(7, 5, generator=DRAW, dtype=torch.float64),
    "BF16": torch.randn(7, 5, generator=DRAW).bfloat16(),
}


def rows(dtype: str, start: int = 0) -> TableRows:
    entry = TensorEntry(dtype, dtype, (7, 5), None, 0, 0)
    model = Checkpoint("tables", Path("tables"), None, {dtype: entry}, {}, memory={dtype: TABLES[dtype]})
    return TableRows(partial(model.source, dtype), 5 * start, dtype)


def read(source: RowSource, count: int, dtype: torch.dtype, step: int) -> torch.Tensor:
    values = torch.empty(5 * count, dtype=dtype)
    with FileTable() as table:
        opened = source.open(table)
        for start in range(0, 5 * count, step):
            part = values[start : start + step]
            opened.read(start, part.numel(), byte_view(part))
    return values.view(count, 5)


@pytest.mark.parametrize("step", [1, 3, 5, 8, 100])
def test_rows_in_another_type_and_their_means(step: int) -> None:
    one, two = TABLES["BF16"], TABLES["F64"]
    converted = read(ComputedRows([rows("BF16", 2)], "F32"), 4, torch.float32, step)
    torch.testing.assert_close(converted, one[2:6].float(), rtol=0, atol=0)
    mean = read(ComputedRows([rows("BF16", 1), rows("F64", 3)], "F32"), 2, torch.float32, step)
    torch.testing.assert_close(mean, ((one[1:3].double() + two[3:5]) / 2).float(), rtol=0, atol=0)
    assert not read(ComputedRows([], "BF16"), 3, torch.bfloat16, step).any()


@pytest.mark.parametrize("step", [1, 3, 5, 8, 100])
def test_the_mean_of_a_table_again_and_again(step: int) -> None:
    source = MeanOfRows(rows("BF16").open, (7, 5), "BF16")
    wanted = TABLES["BF16"].double().mean(0).bfloat16().expand(3, 5)
    torch.testing.assert_close(read(source, 3, torch.bfloat16, step), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("step", [1, 3, 5, 8, 100])
def test_rows_in_runs(step: int) -> None:
    sources = [rows("F32"), ComputedRows([rows("BF16")], "F32"), ComputedRows([], "F32")]
    source = GatheredRows(sources, [0, 2, 3, 5], [1, 0, 2, 0], [4, 6, 0, 0], 5, 4)
    one, two = TABLES["F32"], TABLES["BF16"].float()
    wanted = torch.cat([two[4:6], one[6:7], torch.zeros(2, 5), one[:3]])
    torch.testing.assert_close(read(source, 8, torch.float32, step), wanted, rtol=0, atol=0)
