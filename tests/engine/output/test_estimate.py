"""The time that a merge is estimated to take: a positive number, and less with more workers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import submerge
from _models import ROOM, Family, family
from submerge.engine import compute_seconds
from submerge.engine.output import _estimate, count_passes

SHAPES = {"a.mlp.weight": (24, 16), "b.mlp.weight": (16, 24), "c.norm.weight": (16,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("models"), shapes=SHAPES)


@pytest.mark.parametrize("method", ["linear", "ties", "iso_c", "ssam", "mass"])
def test_it_is_positive_and_leaves_torchs_threads(
    made: Family, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_estimate, "ELEMENTS", 1 << 12)
    threads = torch.get_num_threads()
    assert compute_seconds(submerge.plan(made.recipe(method), ROOM)) > 0
    assert torch.get_num_threads() == threads


def test_workers_share_the_time(made: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_estimate, "ELEMENTS", 1 << 12)
    ticks = iter(range(100))
    monkeypatch.setattr(_estimate.time, "perf_counter", lambda: float(next(ticks)))
    one, four = (
        compute_seconds(submerge.plan(made.recipe("ties"), replace(ROOM, threads=threads)))
        for threads in (1, 4)
    )
    assert one == 4 * four


def test_nothing_to_merge_takes_no_time(made: Family) -> None:
    plan = submerge.plan(made.recipe("ties"), ROOM)
    assert compute_seconds(replace(plan, tensors=())) == 0


@pytest.mark.parametrize(
    ("method", "own", "passes"),
    [("linear", {}, 1), ("ties", {}, 1), ("ties", {"density": 0.5}, 2), ("sce", {}, 2)],
)
def test_passes_are_counted(
    made: Family, method: str, own: dict[str, float], passes: int, tmp_path: Path
) -> None:
    plan = submerge.plan(made.recipe(method, own), ROOM)
    assert count_passes(plan) == passes
    report = submerge.merge(plan, tmp_path / "out")
    assert (passes - 0.9) * plan.bytes_read < report.bytes_read <= passes * plan.bytes_read


def test_matrices_are_read_to_be_decomposed_and_once_more(made: Family) -> None:
    assert count_passes(submerge.plan(made.recipe("iso_c"), ROOM)) == 2
