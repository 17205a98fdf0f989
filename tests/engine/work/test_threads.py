"""Workers in threads: errors and interruptions end them, and runs in one process share torch's settings."""

from __future__ import annotations

import threading

import pytest
import torch

from submerge.engine.work import Pass, Passes, Range, Workspace, run_jobs
from submerge.engine.work._threads import _SingleThreaded

CPU = torch.device("cpu")
RANGES = [Range(number, 10 * number, 10 * number + 10) for number in range(7)]


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_error_no_worker_is_left_and_torchs_threads_are_as_before(threads: int) -> None:
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


def test_an_interruption_may_come_before_all_workers_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    def job() -> Passes:
        yield Pass(RANGES, lambda *_: None)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(iter([job()]), threads=3, device=CPU)
    assert not started[0].is_alive()


def test_the_last_of_the_active_runs_restores_torchs_threads() -> None:
    before = torch.get_num_threads()
    single = _SingleThreaded()
    try:
        torch.set_num_threads(2)
        with single:
            with single:
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1, "the other run still needs it"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
