"""What adapters do to tensors by ranges, in any cut, in memory and on disk, stopped and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import submerge
from _adapters import Tuned, same_state
from _models import ROOM, read
from submerge.engine.plan import MergePlan, make_plan
from submerge.engine.work import _chunk_reader, adapter_edits
from submerge.engine.work._input_reader import input_readers
from submerge.store import FileTable


@pytest.fixture(scope="module")
def planned(tuned_case: Callable[[str], Tuned]) -> Callable[[str], MergePlan]:
    """The plan of merging the adapter of a case into its base, made once."""
    return cache(lambda case: make_plan(tuned_case(case).recipe(), ROOM))


@pytest.mark.parametrize(
    "case", ["dora", "conv1d-dora", "convolutions-dora", "mixtral", "tokens", "bias-of-b"]
)
@given(cuts=st.lists(st.floats(0, 1), max_size=6), block=st.sampled_from([1, 40, 1 << 20]))
def test_any_range_is_a_range_of_the_whole(
    case: str,
    tuned_case: Callable[[str], Tuned],
    planned: Callable[[str], MergePlan],
    cuts: list[float],
    block: int,
) -> None:
    found, plan = tuned_case(case), planned(case)
    with pytest.MonkeyPatch.context() as patch, FileTable() as table:
        patch.setattr("submerge.engine.work._adapter_edit.BLOCK", block)
        for tensor in plan.tensors:
            (_, edit) = edits = adapter_edits(plan.models, tensor, table)
            if edit is None:
                continue
            sources = [plan.models[i.model].source(i.entry.name, table) for i in tensor.read]
            origin, own = input_readers(tensor.members, sources, edits)
            ends = sorted({0, tensor.numel, *(int(cut * tensor.numel) for cut in cuts)})
            parts = [own.difference(origin, start, stop, torch.float32) for start, stop in pairwise(ends)]
            expected = (found.merged[0][tensor.name] - found.state[tensor.name]).reshape(-1)
            torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "breadcrumbs", "cat"])
def test_chunks_do_not_matter(
    method: str,
    two: Tuned,
    tmp_path: Path,
    tiny_chunks: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"density": 0.5} if method not in ("task_arithmetic", "cat") else {}
    joined = [f"{two.base}+{two.adapters[0]}", two.full()[1]]
    recipe = two.recipe(method, models=joined, own={"weight": 0.5, **own})
    submerge.merge(recipe, tmp_path / "whole", settings=ROOM)
    tiny_chunks(100)
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.chunk_length", _chunk_reader.chunk_length)
    submerge.merge(recipe, tmp_path / "pieces", settings=ROOM)
    same_state(read(tmp_path / "pieces"), read(tmp_path / "whole"), 1e-6)


@pytest.mark.parametrize("method", ["ssam", "tsv_m", "iso_c", "knots_ties"])
def test_updates_that_are_read_anew_are_those_that_are_held(
    method: str, two: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [two.adapters[0], two.full()[1]]
    for form in ("checkpoint", "adapter"):
        monkeypatch.undo()
        two.merge(tmp_path / f"held-{form}", method, models=models, output={"as": form})
        monkeypatch.setattr("submerge.engine.work._matrix.HELD", 0)
        two.merge(tmp_path / f"anew-{form}", method, models=models, output={"as": form})
    same_state(read(tmp_path / "anew-checkpoint"), read(tmp_path / "held-checkpoint"), 1e-5)
    same_state(two.loaded(tmp_path / "anew-adapter"), two.loaded(tmp_path / "held-adapter"), 2e-5)
