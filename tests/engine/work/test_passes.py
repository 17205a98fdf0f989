"""Jobs as generators of passes, by a loop and by the pool; no tensor, no file."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from engine.work.helpers_work import space
from submerge.engine.work import Pass, Passes, Range, Workspace, run_jobs, run_passes
from submerge.engine.work._passes import single


def cut(count: int, work: Callable[[Range, Workspace], Any], combine: Callable[[list[Any]], Any]) -> Pass:
    return Pass([Range(k, 10 * k, 10 * k + 10) for k in range(count)], work, combine)


def in_a_loop(*jobs: Passes) -> None:
    for job in jobs:
        run_passes(job, space())


def in_the_pool(*jobs: Passes) -> None:
    run_jobs(iter(jobs), threads=3, device=torch.device("cpu"))


runners = pytest.mark.parametrize("run", [in_a_loop, in_the_pool])


def slow_at_first(one: Range, _: object) -> int:
    time.sleep(0.003 * (one.number == 0))  # so that its part comes last
    return one.start


@runners
def test_a_job_receives_what_each_pass_comes_to(run: Callable[..., None]) -> None:
    results: list[Any] = []

    def job() -> Passes:
        starts = yield cut(4, slow_at_first, list)
        results.append(starts)
        total = yield cut(len(starts), lambda one, _: starts[one.number] + 1, sum)  # what came before is here
        results.append(total)
        results.append((yield single(7, lambda _: "alone")))
        results.append((yield Pass([Range(0, 0, 1)], slow_at_first)))

    run(job())
    assert results == [[0, 10, 20, 30], 64, "alone", None]


@runners
def test_many_jobs_of_any_length(run: Callable[..., None]) -> None:
    ended: list[int] = []

    def job(number: int) -> Passes:
        for count in range(1, number % 5 + 1):
            parts = yield cut(count, lambda one, _: one.number, list)
            assert parts == list(range(count))
        ended.append(number)

    run(*(job(number) for number in range(60)))
    assert sorted(ended) == list(range(60))


@runners
@pytest.mark.parametrize("where", ["work", "combine", "job"])
def test_an_error_ends_the_run(run: Callable[..., None], where: str) -> None:
    def fail(*_: object) -> None:
        raise ValueError(where)

    def job() -> Passes:
        yield cut(2, fail if where == "work" else slow_at_first, fail if where == "combine" else list)
        fail()

    with pytest.raises(ValueError, match=where):
        run(job())


def test_a_pass_begins_when_the_one_before_it_is_done() -> None:
    lock, under_way, most = threading.Lock(), [0, 0], [0, 0]

    def watched(number: int) -> Callable[[Range, Workspace], None]:
        def work(one: Range, _: Workspace) -> None:
            with lock:
                under_way[number] += 1
                assert not under_way[1 - number]
                most[number] = max(most[number], under_way[number])
            time.sleep(0.002)
            with lock:
                under_way[number] -= 1

        return work

    def job() -> Passes:
        yield cut(6, watched(0), list)
        yield cut(6, watched(1), list)

    in_the_pool(job())
    assert max(most) > 1, "workers share a pass"


@runners
def test_what_a_job_holds_is_gone_when_the_next_one_begins(run: Callable[..., None]) -> None:
    """Or memory would hold two tensors for each worker."""
    held: list[weakref.ref[torch.Tensor]] = []

    def job() -> Passes:
        assert all(before() is None for before in held)
        values = torch.zeros(10)
        held.append(weakref.ref(values))
        yield single(10, lambda _: values.add_(1))

    def in_one_thread(*jobs: Passes) -> None:
        run_jobs(iter(jobs), threads=1, device=torch.device("cpu"))

    (in_one_thread if run is in_the_pool else run)(*(job() for _ in range(3)))
    assert len(held) == 3


def test_no_more_jobs_are_begun_than_there_are_workers() -> None:
    """What a job holds between its passes counts for the memory of a worker."""
    lock, begun, most = threading.Lock(), [0], [0]

    def job() -> Passes:
        with lock:
            begun[0] += 1
            most[0] = max(most[0], begun[0])
        yield cut(3, slow_at_first, list)
        yield single(1, lambda _: time.sleep(0.001))
        with lock:
            begun[0] -= 1

    def jobs() -> Iterator[Passes]:
        for _ in range(40):
            yield job()

    run_jobs(jobs(), threads=3, device=torch.device("cpu"))
    assert begun == [0]
    assert most[0] <= 3
