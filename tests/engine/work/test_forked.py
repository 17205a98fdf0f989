"""Workers in processes: the bytes of threads, and every way in which a process can end."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, Family, contents, perturbed, state, write
from submerge.engine.output import CheckpointTarget, Run
from submerge.engine.work import RangeRecord, _forked
from submerge.engine.work._meter import Meter
from submerge.engine.work._passes import Passes

SHAPES = {f"model.layers.{i}.weight": (40, 30) for i in range(12)} | {"model.norm.weight": (30,)}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("models")
    base = state(SHAPES)
    tuned = tuple(write(root / f"tuned{i}", perturbed(base, i)) for i in range(2))
    return Family(write(root / "base", base), tuned, "Toy")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every merge fork, whatever its size; return the processes of the last one."""
    monkeypatch.setattr(_forked, "WORTHWHILE", 1)
    monkeypatch.setattr(_forked.threading, "active_count", lambda: 1)
    fork, pids = os.fork, []

    def noted() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)
    return pids


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("method", ["ties", "dare_ties", "model_stock", "slerp", "iso_c"])
def test_processes_give_the_bytes_of_threads(
    family: Family, tmp_path: Path, forked: list[int], method: str
) -> None:
    options = {"ties": {"density": 0.3}, "dare_ties": {"density": 0.4}, "slerp": {"t": 0.3}}.get(method, {})
    tuned = family.tuned[:1] if method == "slerp" else family.tuned
    models = [{"model": str(path)} for path in tuned]
    if method in ("ties", "dare_ties"):
        options["weight"] = 0.5
    recipe = {"merge_method": method, "base_model": str(family.base), "models": models, "parameters": options}
    plain = submerge.merge(recipe, tmp_path / "threads" / "out", settings=replace(ROOM, threads=1))
    assert not forked
    report = submerge.merge(recipe, tmp_path / "forked" / "out", settings=replace(ROOM, threads=2))
    assert len(forked) == 2
    assert all(gone(pid) for pid in forked)
    assert contents(tmp_path / "forked" / "out") == contents(tmp_path / "threads" / "out")
    assert (report.bytes_read, report.bytes_written) == (plain.bytes_read, plain.bytes_written)


def test_a_tensor_is_merged_before_the_fork_which_then_inherits_what_that_compiled(
    family: Family, tmp_path: Path, forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[tuple[int, int]] = []
    finished = Run._finished

    def noted(run: Run, record: RangeRecord) -> None:
        merged.append((len(forked), record.tensor))
        finished(run, record)

    monkeypatch.setattr(Run, "_finished", noted)
    monkeypatch.setattr("submerge.engine.output._run.FIRST", 40 * 30)
    merge(family, tmp_path / "forked" / "out")
    assert [forks for forks, _ in merged] == [0] + [2] * 12
    assert sorted(tensor for _, tensor in merged) == list(range(13))
    merge(family, tmp_path / "threads" / "out", settings=replace(ROOM, threads=1))
    assert contents(tmp_path / "forked" / "out") == contents(tmp_path / "threads" / "out")


def merge(family: Family, out: Path, **arguments: Any) -> submerge.MergeReport:
    recipe = family.write_recipe("task_arithmetic")
    return submerge.merge(recipe, out, **({"settings": replace(ROOM, threads=2)} | arguments))


def broken(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Make a worker do `what` when it begins one of the middle tensors."""
    make = CheckpointTarget.job

    def job(self: Any, index: int, *rest: Any) -> Any:
        if index == 6:
            what()
        return make(self, index, *rest)

    monkeypatch.setattr(CheckpointTarget, "job", job)


def test_an_error_of_a_worker_is_the_runs(
    family: Family, tmp_path: Path, forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise submerge.WorkError("the disk is gone")

    broken(monkeypatch, fail)
    with pytest.raises(submerge.WorkError, match="the disk is gone"):
        merge(family, tmp_path / "out")
    assert all(gone(pid) for pid in forked)
    assert not (tmp_path / "out").exists()


def test_an_error_that_cannot_be_sent_keeps_its_text(
    family: Family, tmp_path: Path, forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OddError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    def fail() -> None:
        raise OddError(3, 4)

    broken(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="OddError: 3 and 4"):
        merge(family, tmp_path / "out")


def test_a_killed_worker_is_told_and_the_run_resumes(
    family: Family, tmp_path: Path, forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(submerge.WorkError, match="ended from outside"):
            merge(family, tmp_path / "out")
    assert all(gone(pid) for pid in forked)
    assert not (tmp_path / "out").exists()
    assert merge(family, tmp_path / "out", resume=True).resumed > 0
    merge(family, tmp_path / "whole" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")


def test_an_interrupted_run_leaves_no_worker(
    family: Family, tmp_path: Path, forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(family, tmp_path / "out", progress=interrupted)
    assert forked
    assert all(gone(pid) for pid in forked)
    assert not (tmp_path / "out").exists()


def test_what_processes_move_is_counted_as_they_move_it(
    family: Family, tmp_path: Path, forked: list[int]
) -> None:
    seen: list[submerge.engine.Progress] = []
    report = merge(family, tmp_path / "out", progress=seen.append)
    assert forked
    last = seen[-1]
    assert last.moved == report.bytes_read + last.total
    assert all(found.moved >= found.written > 0 for found in seen if found.written)
    assert [found.moved for found in seen] == sorted(found.moved for found in seen)


def test_more_jobs_than_the_queue_holds() -> None:
    def nothing() -> Passes:
        yield from ()

    count = 30_000  # a pipe holds 16 384 indices
    run: Any = _forked.run_forked
    peak = run(range(count), lambda *_: nothing(), print, meter=Meter(), workers=2, tick=lambda: None)
    assert peak > 0


def test_an_error_of_all_workers_is_the_runs_though_jobs_are_left_that_none_takes() -> None:
    def fail(*_: object) -> Passes:
        time.sleep(0.2)  # until the queue is full
        raise submerge.WorkError("the disk is full")

    run: Any = _forked.run_forked
    with pytest.raises(submerge.WorkError, match="the disk is full"):
        run(range(30_000), fail, print, meter=Meter(), workers=2, tick=lambda: time.sleep(0.4))


def test_where_processes_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forked.threading, "active_count", lambda: 1)
    cpu, many = torch.device("cpu"), [1 << 22] * 8
    assert _forked.can_fork(many, 2, cpu)
    assert not _forked.can_fork(many, 1, cpu)
    assert not _forked.can_fork(many, 2, torch.device("cuda"))
    assert not _forked.can_fork([1 << 10] * 8, 2, cpu), "too little work"
    assert not _forked.can_fork([1 << 26, *many], 2, cpu), "one tensor is nearly all"
    monkeypatch.setattr(_forked.threading, "active_count", lambda: 2)
    assert not _forked.can_fork(many, 2, cpu), "other threads run"
