"""kth_largest is what a full sort gives, whatever the values, the chunks and the sample."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _support import drive
from submerge.algebra import Reduction, kth_largest
from submerge.engine import merge_state_dicts

SELECT = "submerge.algebra._select"


@pytest.fixture
def bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample, bracket and thin out tensors of a few thousand values."""
    monkeypatch.setattr(f"{SELECT}.COLLECT_ALL", 64)
    monkeypatch.setattr(f"{SELECT}.COLLECT_MOST", 256)


def by_sort(values: torch.Tensor, rank: int) -> float:
    """Return the rank-th largest, NaN counted as infinitely large."""
    known = torch.nan_to_num(values, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return known.sort(descending=True).values[rank - 1].item()


def search(
    values: torch.Tensor,
    ranks: list[list[int | float]],
    length: int = 500,
    sample: tuple[tuple[int, int], ...] = ((0, 64),),
    seen: Callable[[Reduction], None] = lambda reduction: None,
) -> list[list[float]]:
    plan = kth_largest(values.shape[1], ranks, lambda chunk, row: chunk.updates[row])
    return drive(plan, values, length=length, sample=sample, seen=seen)


def assert_sorted(values: torch.Tensor, ranks: list[list[int]], **how: object) -> None:
    wanted = [[by_sort(row, rank) for rank in own] for row, own in zip(values, ranks, strict=True)]
    assert search(values, ranks, **how) == wanted


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


N = 5000
RANKS = [1, 2, 50, N // 5, N // 2, N - 50, N - 1, N]
SHAPES = {
    "normal": normal(N),
    "float64": normal(N, dtype=torch.float64),
    "sorted": normal(N).sort().values,
    "reversed": normal(N).sort(descending=True).values,
    "constant": torch.full((N,), 3.0),
    "zeros": torch.zeros(N),
    "mostly zeros": normal(N) * (normal(N, seed=1) > 1.5),
    "two values": (normal(N) > 0).float(),
    "rounded": (normal(N) * 3).round(),
    "giants in one block": torch.cat([normal(N // 2), 1e30 * normal(64), normal(N // 2 - 64)]),
    "giants in the sample": torch.cat([1e30 * normal(64).abs(), normal(N - 64)]),
    "periodic": normal(7).repeat(N)[:N],
    "subnormal": normal(N) * 1e-42,
    "infinite": torch.where(normal(N, seed=1).abs() > 1, normal(N) * torch.inf, normal(N)),
    "nan": torch.where(normal(N, seed=1).abs() > 1, torch.nan, normal(N)),
    "all nan": torch.full((N,), torch.nan),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_collected_whole(values: torch.Tensor) -> None:
    assert_sorted(values[None], [RANKS])


@pytest.mark.parametrize("most", [64, 1 << 16])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_bracketed_among_what_is_collected(
    values: torch.Tensor, share: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SELECT}.PARTITION_MOST", 64)
    monkeypatch.setattr(f"{SELECT}.SORTED", most // 2)
    monkeypatch.setattr(f"{SELECT}.COLLECT_MOST", most)
    rank = int(share * int((torch.nan_to_num(values, nan=torch.inf) > 0).sum()))
    wanted = by_sort(values, rank) if rank else math.inf
    assert search(values[None], [[*RANKS, share]]) == [[*(by_sort(values, r) for r in RANKS), wanted]]


@pytest.mark.usefixtures("bracketed")
@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_bracketed_by_a_sample(values: torch.Tensor) -> None:
    assert_sorted(values[None], [RANKS])


@pytest.mark.usefixtures("bracketed")
@pytest.mark.parametrize("sample", [((0, 1),), ((4999, 5000),), ((0, 4), (2500, 2504)), ((0, 5000),)])
@pytest.mark.parametrize("name", ["normal", "sorted", "giants in one block", "mostly zeros", "infinite"])
def test_no_sample_can_mislead(name: str, sample: tuple[tuple[int, int], ...]) -> None:
    assert_sorted(SHAPES[name][None], [RANKS], sample=sample)


@pytest.mark.usefixtures("bracketed")
def test_rows_have_their_own_ranks() -> None:
    values = torch.stack([normal(N), normal(N).sort().values * 5, torch.zeros(N), normal(N, seed=2).round()])
    assert_sorted(values, [[10, 10, 4000], [], [1, N], [777]])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("share", [0.0, 1e-9, 0.001, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("name", ["normal", "constant", "zeros", "mostly zeros", "sorted", "rounded", "nan"])
def test_a_share_is_of_the_positive_values(
    name: str, share: float, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SELECT}.COLLECT_ALL", N if whole else 64)
    monkeypatch.setattr(f"{SELECT}.COLLECT_MOST", 256)
    values = SHAPES[name]
    rank = int(share * int((torch.nan_to_num(values, nan=torch.inf) > 0).sum()))
    wanted = by_sort(values, rank) if rank else math.inf
    assert search(values[None], [[share, 3]]) == [[wanted, by_sort(values, 3)]]


@pytest.mark.usefixtures("bracketed")
@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_without_a_function_magnitudes_are_searched(values: torch.Tensor) -> None:
    found = drive(kth_largest(N, [[1, N // 5, 0.5]]), values[None], length=500)
    positive = int((torch.nan_to_num(values, nan=torch.inf) != 0).sum())
    wanted = [by_sort(values.abs(), rank) if rank else math.inf for rank in (1, N // 5, positive // 2)]
    assert found == [wanted]


def test_nothing_asked_reads_nothing() -> None:
    assert search(normal(2, 10), [[], []], seen=lambda reduction: pytest.fail("a pass was made")) == [[], []]


@pytest.mark.parametrize(("limit", "passes"), [(N, 1), (N - 1, 2)])
def test_a_good_sample_takes_one_short_look_and_one_pass(
    limit: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SELECT}.COLLECT_ALL", limit)
    reductions: list[Reduction] = []
    search(normal(1, N), [[1000]], sample=((0, 1000),), seen=reductions.append)
    assert [r.sample for r in reductions] == [False] if passes == 1 else [True, False]


def test_a_pass_holds_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SELECT}.COLLECT_ALL", 64)
    monkeypatch.setattr(f"{SELECT}.COLLECT_MOST", 400)
    values = normal(1, 40_000)
    held: list[int] = []

    def watch(reduction: Reduction) -> None:
        combine = reduction.combine

        def counted(parts: list) -> object:
            result = combine(parts)
            held.extend(len(census.values) for census in result) if not reduction.sample else None
            return result

        reduction.combine = counted  # type: ignore[method-assign]

    found = search(values, [[20_000]], length=8_000, sample=((0, 200),), seen=watch)
    assert found == [[by_sort(values[0], 20_000)]]
    assert len(held) > 1
    assert max(held) <= 2 * 400, "every stride-th value, and the expectation may be a little off"


@pytest.mark.usefixtures("bracketed")
def test_nan_that_only_overflow_made_does_not_hang() -> None:
    """A chunk of finite inputs counts as finite, though values made of them need not be."""
    values = torch.ones(1, N)

    def overflowed(chunk: object, row: int) -> torch.Tensor:
        return chunk.updates[row].masked_fill(torch.arange(chunk.updates.shape[1]) % 10 > 0, torch.nan)

    plan = kth_largest(N, [[N - 10]], overflowed)
    drive(plan, values, length=500)


@given(
    data=st.data(),
    size=st.integers(1, 600),
    length=st.integers(1, 200),
    whole=st.booleans(),
    kind=st.sampled_from(["floats", "ties", "wide"]),
)
def test_any_values_any_chunks(data: st.DataObject, size: int, length: int, whole: bool, kind: str) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    values = {
        "floats": lambda: random.standard_normal(size),
        "ties": lambda: random.integers(-3, 4, size).astype(float),
        "wide": lambda: random.choice([0.0, -0.0, 1e-45, -1e38, np.inf, -np.inf, np.nan, 1.0, 2.0], size),
    }[kind]()
    rank = data.draw(st.integers(1, size))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{SELECT}.COLLECT_ALL", size if whole else 0)
        patch.setattr(f"{SELECT}.COLLECT_MOST", 150)
        rows = torch.from_numpy(values.astype(np.float32))[None]
        assert_sorted(rows, [[rank, 1, size]], length=length, sample=((start, stop),))


@pytest.mark.parametrize("name", ["normal", "sorted", "giants in one block", "mostly zeros", "two values"])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.9])
def test_thresholds_in_the_engine(name: str, density: float, tiny_chunks: Callable[..., None]) -> None:
    """What TIES keeps of one model is what a sort would keep, with ties, when passes are short."""
    tiny_chunks()
    values = SHAPES[name]
    kept = merge_state_dicts(
        [{"w": values}], base={"w": torch.zeros(N)}, method="ties", weight=1, density=density
    )
    threshold = by_sort(values.abs(), int(density * N))
    assert torch.equal(kept["w"], values * (values.abs() >= threshold))


@pytest.mark.parametrize("order", ["random", "sorted", "one block"])
def test_a_large_tensor_with_the_constants_as_they_are(order: str) -> None:
    values = normal(2_500_000)
    if order == "sorted":
        values = values.sort().values
    elif order == "one block":
        values[1_000_000:1_600_000] *= 1e6
    options = {"weight": [1, 1], "density": [0.2, 0.01], "normalize": False}
    models, base = [{"w": values}, {"w": -values}], {"w": torch.zeros_like(values)}
    kept = merge_state_dicts(models, base=base, method="ties", threads=2, **options)["w"]
    most, few = (values.abs().kthvalue(len(values) - int(d * len(values)) + 1).values for d in (0.2, 0.01))
    alone = (values.abs() >= most) & (values.abs() < few)
    assert torch.equal(kept[alone], values[alone]), "kept of the first model only"
    assert torch.equal(kept[values.abs() >= few], values[values.abs() >= few].abs()), "a tie is positive"
    assert not kept[values.abs() < most].any()
