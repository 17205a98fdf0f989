"""Fused matrices: the update of each map, by the rows that its layout says, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from _updates import adapters, full, matrix, normal, streamed
from submerge.algebra import Dense, FusedLayout, LowRank, Streamed, Update, Zero

LAYOUTS = [
    FusedLayout(("q", "k", "v"), (12, 6, 6)),
    FusedLayout(("q", "k", "v"), (4, 2, 2), groups=3),
    FusedLayout(("k", "v"), (1, 1), groups=12),
    FusedLayout(("gate", "up"), (12, 12)),
    FusedLayout(("all",), (24,)),
]
FORMS: Sequence[Callable[[tuple[int, int]], Update]] = [
    lambda shape: adapters(shape, [3])[0],
    lambda shape: full(shape, 1)[0],
    lambda shape: streamed(full(shape, 1))[0],
    Zero,
]


def on(layout: FusedLayout, axis: int) -> tuple[FusedLayout, tuple[int, int]]:
    return FusedLayout(layout.maps, layout.sizes, layout.groups, axis), ((10, 24) if axis else (24, 10))


def places(layout: FusedLayout) -> list[list[int]]:
    """Return the rows of each map, one by one."""
    owner = [which for which, size in enumerate(layout.sizes) for _ in range(size)] * layout.groups
    return [[row for row, own in enumerate(owner) if own == which] for which in range(len(layout.maps))]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS, ids=["factors", "dense", "streamed", "zero"])
def test_each_map_has_its_rows(
    form: Callable[[tuple[int, int]], Update], layout: FusedLayout, axis: int
) -> None:
    layout, shape = on(layout, axis)
    update = form(shape)
    parts = layout.split(update)
    assert [part.shape for part in parts] == layout.shapes(shape)
    assert {type(part) for part in parts} == {type(update)}
    for part, rows in zip(parts, places(layout), strict=True):
        torch.testing.assert_close(matrix(part), matrix(update).index_select(axis, torch.tensor(rows)))
    joined = layout.join(parts)
    assert type(joined) is type(update)
    assert torch.equal(matrix(joined).isclose(matrix(update), rtol=0, atol=1e-12), torch.ones(shape).bool())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_any_rows_are_read(layout: FusedLayout, axis: int) -> None:
    layout, shape = on(layout, axis)
    update = streamed(full(shape, 1))[0]
    for part in layout.split(update):
        assert isinstance(part, Streamed)
        whole = part.dense()
        for start in range(part.shape[0]):
            for stop in range(start, part.shape[0] + 1):
                assert torch.equal(part.rows(start, stop), whole[start:stop])
    parts = layout.split(update)
    joined = layout.join([parts[0], *(Dense(part.dense()) for part in parts[1:])])
    for start in range(shape[0]):
        for stop in range(start, shape[0] + 1):
            assert torch.equal(joined.rows(start, stop), update.rows(start, stop))


def test_factors_add_their_ranks_and_share_the_inputs_side() -> None:
    layout = FusedLayout(("q", "k", "v"), (4, 2, 2), groups=3)
    parts: list[Update] = [
        LowRank(normal(1, 12, 3), normal(2, 3, 10)),
        Zero((6, 10)),
        LowRank(normal(3, 6, 1), normal(4, 1, 10)),
    ]
    joined = layout.join(parts)
    assert isinstance(joined, LowRank)
    assert joined.left.shape == (24, 4)
    assert torch.equal(joined.right, torch.cat([normal(2, 3, 10), normal(4, 1, 10)]))
    assert int((joined.left != 0).sum()) == 12 * 3 + 6
    q, k, v = layout.split(joined)
    assert not matrix(k).any()
    torch.testing.assert_close(matrix(q), matrix(parts[0]))
    torch.testing.assert_close(matrix(v), matrix(parts[2]))


def test_one_dense_map_makes_all_rows() -> None:
    layout = FusedLayout(("k", "v"), (2, 2), groups=2)
    parts: list[Update] = [
        Dense(normal(1, 4, 5).float()),
        LowRank(normal(2, 4, 1).float(), normal(3, 1, 5).float()),
    ]
    joined = layout.join(parts)
    assert isinstance(joined, Dense)
    assert joined.dtype == torch.float32
    for part, again in zip(parts, layout.split(joined), strict=True):
        torch.testing.assert_close(matrix(again), matrix(part))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_matrix_of_other_rows_is_refused(axis: int) -> None:
    layout, shape = on(LAYOUTS[0], axis)
    with pytest.raises(ValueError, match="24"):
        layout.split(Zero((shape[0] + 1, shape[1] + 1)))
