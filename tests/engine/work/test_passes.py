"""Jobs as generators of passes, taken through them by the calling thread."""

from __future__ import annotations

from engine.work.helpers_work import CPU, job
from submerge.engine.work import Passes, Workspace, run_passes
from submerge.engine.work._passes import next_pass, single


def test_the_calling_thread_takes_a_job_through_its_passes() -> None:
    results: list[str] = []
    run_passes(job(results), Workspace(CPU))
    assert results == ["0123456" * 3]
    run_passes(job(results, passes=0), Workspace(CPU))
    assert results[1] == ""


def test_a_pass_that_is_not_cut_has_one_part() -> None:
    def passes() -> Passes:
        found.append((yield single(5, lambda space: space.device)))

    found: list[object] = []
    run_passes(passes(), Workspace(CPU))
    assert found == [CPU]


def test_the_end_of_a_job_is_no_pass() -> None:
    passes = job([], passes=1)
    step = next_pass(passes, None)
    assert step is not None
    assert next_pass(passes, "") is None
