"""A chunk's views of its updates, and its random numbers."""

import numpy as np
import torch

from _support import pieces
from submerge.algebra import Chunk, bernoulli, stream_key, uniform


def test_rows_of_a_chunk_are_a_view() -> None:
    (chunk,) = pieces(torch.zeros(2, 12), [(0, 12)], width=4)
    assert isinstance(chunk, Chunk)
    assert chunk.rows.shape == (2, 3, 4)
    chunk.rows[1, 2, 3] = 7
    assert chunk.updates[1, 11] == 7


def test_random_numbers_are_those_of_the_models_stream_at_the_chunks_place() -> None:
    keys = [stream_key(0, "w", t) for t in (0, 1)]
    chunk = Chunk(7, torch.zeros(2, 5, dtype=torch.float64), width=1, finite=True, keys=keys)
    assert torch.equal(chunk.draw(1), uniform(keys[1], 7, 5))
    draws = chunk.bernoulli(1, 0.5)
    assert draws.dtype == torch.float64
    assert torch.equal(draws, bernoulli(keys[1], 7, 5, 0.5).double())


def test_scratch_rows_are_taken_from_the_owners() -> None:
    rows = {index: np.full(5, index, np.float32) for index in (-1, 0, 2)}
    chunk = Chunk(0, torch.zeros(1, 5), width=1, finite=True, keys=[0], spare=rows.__getitem__)
    assert chunk.row(2) is rows[2]
    assert np.shares_memory(chunk.scratch(2).numpy(), rows[2])
    assert np.shares_memory(chunk.bernoulli(0, 1.0).numpy(), rows[-1]), (
        "apart from those that folds count from 0"
    )


def test_updates_are_an_array_and_a_tensor_in_the_same_memory() -> None:
    for chunk in (
        Chunk(0, np.zeros((2, 3), np.float32), width=1, finite=True, keys=[0, 1]),
        Chunk(0, torch.zeros(2, 3), width=1, finite=True, keys=[0, 1]),
    ):
        chunk.values[1] = 5
        assert chunk.updates[1].tolist() == [5.0] * 3
        chunk.updates.mul_(2)
        assert chunk.values.tolist() == [[0.0] * 3, [10.0] * 3]
