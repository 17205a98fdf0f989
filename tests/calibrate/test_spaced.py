"""Some of many inputs, evenly spaced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.helpers_processors import word_tokenizer
from submerge.calibrate import Item
from submerge.calibrate._batches import EncodedItems
from submerge.calibrate._guard import INPUTS, _some
from submerge.calibrate._spaced import spaced, spaced_rows
from submerge.errors import RequestError


@given(st.integers(0, 200), st.integers(1, 50))
def test_values_are_spread_over_all(count: int, most: int) -> None:
    found = spaced(range(count), most)
    assert len(found) == len(set(found)) == min(count, most)
    gaps = [after - before for before, after in zip(found, [*found[1:], count], strict=False)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@given(st.lists(st.integers(1, 7), min_size=1, max_size=9), st.integers(1, 30))
def test_rows_are_those_of_one_batch(sizes: list[int], most: int) -> None:
    """How inputs are divided into batches does not decide which of them are taken."""
    ids = torch.arange(sum(sizes)).view(-1, 1)
    found = spaced_rows([{"input_ids": part} for part in ids.split(sizes)], most)
    assert torch.cat([batch["input_ids"] for batch in found]).flatten().tolist() == spaced(
        range(len(ids)), most
    )


def test_a_batch_without_a_row_for_each_input_is_taken_whole_or_refused() -> None:
    batch = {"input_ids": torch.ones(2, 3), "pixel_values": torch.ones(3, 3, 8, 8)}
    assert spaced_rows([batch], 2) == [batch]
    with pytest.raises(RequestError, match=r"1 of a batch's 2 inputs .* pixel_values has not a row for each"):
        spaced_rows([batch], 1)


def test_the_guard_looks_at_all_parts_of_the_data() -> None:
    """A file that is sorted by classes has one class in its first 64 rows."""
    items = [Item(text="a" if row < 100 else "b") for row in range(200)]
    found = _some(EncodedItems(items, word_tokenizer(), 16, 8))
    assert isinstance(found, EncodedItems)
    assert [item.text for item in found.items] == ["a"] * 32 + ["b"] * 32
    batches = [{"input_ids": torch.full((16, 2), place)} for place in range(8)]
    taken = _some(batches)
    assert [batch["input_ids"][0, 0].item() for batch in taken] == [0, 2, 4, 6]
    assert sum(len(batch["input_ids"]) for batch in taken) == INPUTS
