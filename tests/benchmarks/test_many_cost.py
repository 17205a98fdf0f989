"""The benchmark of a state's steps takes them as a user's program does, and its page says what must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("peft")

from benchmarks.console import silent
from benchmarks.many_cost import report
from benchmarks.many_cost.subject import GrowingState

import submerge


def test_a_task_of_noise_is_added(tmp_path: Path) -> None:
    subject = GrowingState("tiny", 1, 200)
    subject.make(tmp_path, silent)
    state = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"))
    assert state.add("task-0", str(tmp_path / "adapter-0"), subject.task(0)) == []
    record = state.record("task-0")
    assert (record.maps, record.rank, record.rows) == (7, 16, 200)
    halves = sum(4 * n * (n + 1) // 2 + 8 for n in (64, 64, 64, 176))
    assert record.moment_bytes == halves
    assert state.export(tmp_path / "merged").rank == 16


def test_the_page_says_what_must_hold() -> None:
    step = {
        "seconds": 90.0,
        "cpu_seconds": 50.0,
        "cpu_inside": 40.0,
        "peak_bytes": 2e9,
        "running": 0,
        "tasks": [{"bytes": 400e6, "moments": 350e6}],
    }
    machine = {
        "cpu": "a",
        "cores": 2,
        "memory_gb": 1,
        "system": "b",
        "python": "3",
        "versions": {"torch": "2"},
    }
    results = {"command": "c", "date": "d", "machine": machine, "size": "7b", "tokens": 5, "threads": 1}
    page = report.markdown({**results, "blocks": 1, "all_blocks": 32, "steps": {"full": {"add first": step}}})
    assert "| add first | 90 | 50 | 1280 | 2.00 | 1063 | 11.20 |" in page
    assert "| --keep full: minutes of an add | **no** | 10.7, to be 10 |" in page
    assert "| --keep full: memory of an add | yes | 2.00 GB, to be 6 |" in page
    assert "| --keep full: a task beside moments | **no** | 1063 MB, to be 100 |" in page
