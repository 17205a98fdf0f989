"""The bits of a merge do not depend on threads; nor, but for the rounding of sums, on chunks."""

import time
from collections.abc import Callable, Sequence

import pytest
import torch

from _support import CASES, Case, State, family
from submerge.algebra import Chunk, Reduction
from submerge.engine import merge_state_dicts
from submerge.engine.work import Range
from submerge.engine.work._chunk_reader import ChunkReader
from submerge.methods import FoldPlan, Method, TensorSpec, Values

SHAPES = {"matrix": (300, 70), "norm": (4099,), "conv": (20, 7, 5, 3), "scalar": ()}


@pytest.fixture(scope="module", params=CASES, ids=str)
def merge(request: pytest.FixtureRequest) -> Callable[..., State]:
    """A merge of tensors that take many tiny chunks, by one case; all its arguments are the same."""
    case: Case = request.param
    base, models = family(case.models, SHAPES, seed=11)

    def run(**how: int) -> State:
        return case.merge(base, models, **how)

    run.whole = run(threads=1)
    run.case = case
    return run


def differences(one: State, other: State) -> list[str]:
    return [key for key in one if not torch.equal(one[key], other[key])]


def assert_as_whole(merge: Callable[..., State], merged: State) -> None:
    if merge.case.exact:
        assert differences(merge.whole, merged) == []
    for key, value in merged.items():
        torch.testing.assert_close(value, merge.whole[key], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("length", "tasks"), [(331, 3), (4096, 1)])
def test_chunks_make_no_difference(
    merge: Callable[..., State], tiny_chunks: Callable[..., None], length: int, tasks: int
) -> None:
    tiny_chunks(length, tasks)
    assert_as_whole(merge, merge())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_may_hold_one_element(case: Case, tiny_chunks: Callable[..., None]) -> None:
    base, models = family(case.models, {"w": (9, 7)})
    whole = case.merge(base, models)["w"]
    tiny_chunks(length=1, tasks=5)
    torch.testing.assert_close(case.merge(base, models)["w"], whole, rtol=0, atol=0 if case.exact else 1e-6)


def test_constants_of_the_engine_make_no_difference(
    merge: Callable[..., State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.CHUNK_VALUES", 1)
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.RANGE_ELEMENTS", 1)
    assert_as_whole(merge, merge())


def test_threads_make_no_difference_at_all(
    merge: Callable[..., State], tiny_chunks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_chunks()
    one, two = merge(threads=1), merge(threads=2)
    assert differences(one, two) == []
    spans = ChunkReader.spans

    def late(reader: ChunkReader, one: Range) -> object:
        time.sleep(0.003 * (one.number % 3 == 0))  # so that ranges are done in another order
        return spans(reader, one)

    monkeypatch.setattr(ChunkReader, "spans", late)
    assert differences(one, merge(threads=5)) == []


class Starts(Reduction[int, list[int]]):
    """Where the chunks begin, as the parts are handed over."""

    def observe(self, chunk: Chunk) -> int:
        time.sleep(0.002 * (chunk.start == 0))
        return chunk.start

    def combine(self, parts: Sequence[int]) -> list[int]:
        return list(parts)


def test_parts_are_combined_in_the_order_of_chunks(
    tiny_chunks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []

    def plan(spec: TensorSpec, values: Values) -> FoldPlan:
        found.append((yield Starts()))
        return lambda chunk: chunk.updates[0]

    methods = {"starts": Method("starts", "", "", "", "", plan, origin="zero")}
    monkeypatch.setattr("submerge.methods.METHODS", methods)
    monkeypatch.setattr("submerge.engine._arguments.METHODS", methods)
    tiny_chunks(length=10, tasks=1)
    for _ in range(5):
        merge_state_dicts([{"w": torch.ones(400)}], method="starts", threads=4)
    assert found == [list(range(0, 400, 10))] * 5
