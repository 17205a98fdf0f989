"""Ranges of views, read from the tensor that they are views of."""

import random

import pytest
import torch

from submerge.names._view import View
from submerge.store import MemorySource
from submerge.store.format import _view_source as reading
from submerge.store.format._view_source import ViewSource

TENSORS = {f"t{i}": torch.arange(24.0).reshape(4, 6) + 100 * i for i in range(3)}


def test_a_wrong_range_is_a_bug() -> None:
    source = ViewSource(View.of("t0", (4, 6)), 4, {"t0": MemorySource(TENSORS["t0"])})
    for start, count, size in ((20, 5, 20), (-1, 1, 4), (0, 2, 4)):
        with pytest.raises(ValueError, match="elements"):
            source.read(start, count, memoryview(bytearray(size)))


def test_long_strides_are_read_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed tensor is not read whole for a few of its rows."""
    monkeypatch.setattr(reading, "SPAN", 64)
    big = torch.arange(40.0 * 50).reshape(40, 50)
    counts: list[int] = []

    class Counted(MemorySource):
        def read(self, start: int, count: int, into: memoryview) -> None:
            counts.append(count)
            super().read(start, count, into)

    source = ViewSource(View.of("big", (40, 50)).permute([1, 0]), 4, {"big": Counted(big)})
    draw = random.Random(0)
    for _ in range(20):
        start = draw.randrange(0, 1999)
        out = torch.empty(draw.randrange(1, min(200, 2000 - start) + 1))
        source.read(start, out.numel(), out.view(torch.uint8).numpy().data)
        assert torch.equal(out, big.t().reshape(-1)[start : start + out.numel()])
    assert max(counts) <= 64
