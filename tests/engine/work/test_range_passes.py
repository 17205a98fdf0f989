"""The passes of one tensor, into a target that notes what it gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.work.helpers_work import NotingTarget, reader_of, space
from submerge.engine.work import ChunkReader, Pass, Passes, range_passes
from submerge.engine.work._passes import next_pass

SUM = {"weight": [0.5, 0.25]}
TIES = {"weight": [0.5, 0.25], "density": [0.3, 0.3]}


@pytest.fixture(autouse=True)
def _tiny(tiny_chunks: Callable[..., None]) -> None:
    tiny_chunks(length=10, tasks=2)


def run(reader: ChunkReader, target: NotingTarget) -> list[Pass]:
    """Take a job to its end, and return its passes."""
    job: Passes = range_passes(reader, target)  # type: ignore[arg-type]
    passes, workspace = [], space()
    step = next_pass(job, None)
    while step is not None:
        passes.append(step)
        step = next_pass(job, step.combine([step.work(one, workspace) for one in step.ranges]))
    return passes


def draws(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_a_fold_is_one_pass_over_all_ranges() -> None:
    base, *tuned = draws(3, 47)
    reader = reader_of(tuned, values=SUM, base=base)
    target = NotingTarget(reader)
    (only,) = run(reader, target)
    assert [(one.start, one.stop) for one in only.ranges] == [(0, 20), (20, 40), (40, 47)]
    assert [number for number, *_ in target.finished] == [0, 1, 2]
    expected = base + 0.5 * (tuned[0] - base) + 0.25 * (tuned[1] - base)
    torch.testing.assert_close(target.all, expected, rtol=0, atol=1e-6)


def test_without_the_origin_the_update_is_written() -> None:
    base, *tuned = draws(3, 47)
    reader = reader_of(tuned, values=SUM, base=base)
    target = NotingTarget(reader, with_origin=False)
    run(reader, target)
    expected = 0.5 * (tuned[0] - base) + 0.25 * (tuned[1] - base)
    torch.testing.assert_close(target.all, expected, rtol=0, atol=1e-6)


def test_ranges_that_are_done_are_left_out_of_the_last_pass_alone() -> None:
    base, *tuned = draws(3, 3000)
    reader = reader_of(tuned, "ties", TIES, base=base)
    everything, rest = NotingTarget(reader), NotingTarget(reader, done=[0, 2, 149])
    passes = run(reader, everything)
    again = run(reader, rest)
    assert len(passes) == len(again) > 1
    for one, other in zip(passes[:-1], again[:-1], strict=True):
        assert one.ranges == other.ranges, "a reduction is over all of the tensor"
    assert [one.number for one in again[-1].ranges] == [k for k in range(150) if k not in (0, 2, 149)]
    for start, values in rest.values.items():
        assert torch.equal(values, everything.values[start])


def test_a_sample_is_one_range() -> None:
    base, *tuned = draws(3, 3000)
    reader = reader_of(tuned, "ties", TIES, base=base)
    first, *_ = run(reader, NotingTarget(reader))
    assert first.ranges == [(0, 0, 3000)]


def test_where_all_is_done_there_is_no_pass() -> None:
    reader = reader_of(draws(2, 20), values=SUM)
    assert run(reader, NotingTarget(reader, done=[0])) == []


def test_an_empty_tensor_has_one_record() -> None:
    reader = reader_of([torch.empty(0, 3)] * 2, "ties", TIES)
    target = NotingTarget(reader)
    assert len(run(reader, target)) == 1
    assert [number for number, *_ in target.finished] == [0]
    assert target.values == {}


def test_a_copy_is_compared_with_the_others() -> None:
    first = torch.arange(47)
    other = first.clone()
    other[45] += 1
    reader = reader_of([first, first.clone(), other], None, action="copy")
    target = NotingTarget(reader)
    target.dtype = torch.int64
    (only,) = run(reader, target)
    assert len(only.ranges) == 3
    assert torch.equal(target.all, first)
    assert [differs for *_, differs in target.finished] == [(), (), (2,)]


def test_what_the_base_gives_is_not_folded() -> None:
    (base,) = draws(1, 47)
    reader = reader_of([base], None, action="take_base")
    target = NotingTarget(reader)
    run(reader, target)
    assert torch.equal(target.all, base)


def test_a_matrix_is_decomposed_and_then_written() -> None:
    base, *tuned = draws(3, 8, 9)
    reader = reader_of(tuned, "cat", {"weight": [0.5, 0.25]}, base=base, matrix=True)
    target = NotingTarget(reader)
    decomposed, written = run(reader, target)
    assert [len(step.ranges) for step in (decomposed, written)] == [1, 1]
    expected = base + 0.5 * (tuned[0] - base) + 0.25 * (tuned[1] - base)
    torch.testing.assert_close(target.all.view(8, 9), expected, rtol=0, atol=1e-6)


def test_nan_and_inf_are_counted_by_member_and_only_where_values_are_written() -> None:
    base, *tuned = draws(3, 47)
    tuned[1][3], tuned[0][41], tuned[0][42] = torch.nan, torch.inf, torch.nan
    reader = reader_of(tuned, values=SUM, base=base)
    target = NotingTarget(reader)
    run(reader, target)
    assert [nonfinite for _, nonfinite, *_ in target.finished] == [{2: 1}, {}, {1: 2}]


@pytest.mark.parametrize("with_origin", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("count", [3, 9])
def test_weighted_sums_of_what_is_read_are_those_of_chunks(
    count: int, relative: bool, with_origin: bool
) -> None:
    base, *tuned = (t.bfloat16() for t in draws(count + 1, 47))
    tuned[2][30] = torch.nan
    method = "task_arithmetic" if relative else "linear"
    values = {"weight": [0.5, 0.25, -3.0] * (count // 3)}
    reader = reader_of(tuned, method, values, base=base if relative else None)
    by_chunks = reader_of(tuned, method, values, base=base if relative else None)
    by_chunks.__class__ = type("Chunks", (ChunkReader,), {"sums_raw": False})
    targets = [NotingTarget(one, with_origin=with_origin) for one in (reader, by_chunks)]
    assert reader.sums_raw
    for one, target in zip((reader, by_chunks), targets, strict=True):
        run(one, target)
    written, expected = (target.all.view(torch.int32) for target in targets)
    there = ~targets[0].all.isnan()
    assert there.sum() == 46
    assert torch.equal(written[there], expected[there])
    counts = [[nonfinite for _, nonfinite, *_ in target.finished] for target in targets]
    assert counts[0] == counts[1] == [{}, {2 + relative: 1}, {}]


def test_what_is_read_into_is_the_workers_one_buffer() -> None:
    """The memory of a worker does not grow with the models or the tensor."""
    base, *tuned = draws(3, 3000)
    reader, workspace = reader_of(tuned, values=SUM, base=base), space()
    chunks = list(reader.chunks(0, 3000, workspace))
    assert len({chunk.updates.data_ptr() for chunk in chunks}) == 1
