"""Workers in threads: parts come together in their order, errors end the run, torch's settings are shared."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch

from engine.work.helpers_work import CPU, RANGES, job
from submerge.engine.work import Pass, Passes, Range, Workspace, run_jobs
from submerge.engine.work._threads import _SingleThreaded


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_combine_parts_in_the_order_of_the_ranges(threads: int) -> None:
    results: list[str] = []
    jobs: Iterator[Passes] = (job(results, passes=count % 4) for count in range(20))
    run_jobs(jobs, threads=threads, device=CPU)
    assert sorted(results) == sorted("0123456" * (count % 4) for count in range(20))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_of_a_worker_is_raised_and_torchs_threads_are_as_before(threads: int) -> None:
    def work(one: Range, _: Workspace) -> None:
        if one.number == 4:
            raise ZeroDivisionError(one.number)

    def failing() -> Passes:
        yield Pass(RANGES, work)
        raise AssertionError("its pass was never complete")

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError, match="4"):
        run_jobs(iter([failing()]), threads=threads, device=CPU)
    assert torch.get_num_threads() == before
    assert not [one for one in threading.enumerate() if one.name.startswith("submerge-")]


def test_a_tick_that_raises_stops_the_workers() -> None:
    done: list[int] = []
    held = threading.Event()

    def endless() -> Passes:
        while True:
            yield Pass(RANGES, lambda one, _: done.append(one.number) or held.wait(0.01))

    def tick() -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(iter([endless()]), threads=2, device=CPU, tick=tick)
    assert done


def test_no_job_is_begun_while_ranges_of_others_wait() -> None:
    begun: list[int] = []
    draw = random.Random(0)

    def numbered(number: int) -> Passes:
        begun.append(number)
        for _ in range(draw.randrange(1, 4)):
            yield Pass(RANGES, lambda one, _: None)
        begun.remove(number)

    def jobs() -> Iterator[Passes]:
        for number in range(30):
            assert len(begun) <= 1, "one worker, so one job at a time"
            yield numbered(number)

    run_jobs(jobs(), threads=1, device=CPU)
    assert begun == []


def test_the_last_of_the_active_runs_restores_torchs_threads() -> None:
    before = torch.get_num_threads()
    single = _SingleThreaded()
    try:
        torch.set_num_threads(2)
        single.enter()
        single.enter()
        assert torch.get_num_threads() == 1
        single.leave()
        assert torch.get_num_threads() == 1, "the other run still needs it"
        single.leave()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
