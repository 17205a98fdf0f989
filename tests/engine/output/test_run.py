"""A run that is stopped, at any point and in any way, goes on from where it was, to the same bytes."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, Family, contents, perturbed, state, write
from _victim import start, until
from submerge.engine.output import _checkpoint_files, _folder, _run
from submerge.engine.work import ChunkReader, RangeRecord
from submerge.store import JOURNAL

SHAPES = {f"model.layers.{i}.weight": (220, 300) for i in range(6)} | {"model.norm.weight": (300,)}
METHODS = ("ties", "dare_ties", "linear")


class Stop(Exception):  # noqa: N818
    """What a test stops a run with."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("models")
    base = state(SHAPES, dtype=torch.bfloat16)
    base["model.position_ids"] = torch.arange(300)
    tuned = tuple(
        write(root / f"tuned{i}", perturbed(base, i, dtype=torch.bfloat16), tokens={"a": 0}) for i in range(2)
    )
    made = Family(write(root / "base", base, tokens={"a": 0}), tuned, "Toy")
    for method in METHODS:
        made.write_recipe(method, {} if method == "linear" else {"density": 0.4}, seed=3)
    return made


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.CHUNK_VALUES", 1)
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.RANGE_ELEMENTS", 1)


@pytest.fixture(scope="module")
def wanted(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """The files of a run that nothing stopped."""
    known: dict[str, dict[str, bytes]] = {}

    def of(method: str = "ties") -> dict[str, bytes]:
        if method not in known:
            out = tmp_path_factory.mktemp(method) / "out"
            known[method] = contents(submerge.merge(path_of(family, method), out, settings=ROOM).out)
        return known[method]

    return of


def path_of(family: Family, method: str = "ties") -> Path:
    return family.base.parent / f"{method}.yaml"


def stop_after(monkeypatch: pytest.MonkeyPatch, tasks: int, what: BaseException | None = None) -> None:
    """Make every run fail once so many ranges are written."""
    finished = _run.Run._finished
    count = iter(range(10**9))

    def counted(self: Any, record: RangeRecord) -> None:
        finished(self, record)
        if next(count) + 1 >= tasks:
            raise what or Stop

    monkeypatch.setattr(_run.Run, "_finished", counted)


def interrupt(family: Family, out: Path, tasks: int, method: str = "ties", **settings: Any) -> Path:
    """Stop a run after so many ranges; return the unfinished folder."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, tasks)
        with pytest.raises(Stop):
            submerge.merge(path_of(family, method), out, settings=replace(ROOM, **settings))
    assert not out.exists()
    folder = out.with_name(out.name + ".incomplete")
    assert folder.is_dir()
    return folder


def resume(family: Family, out: Path, method: str = "ties", **settings: Any) -> submerge.MergeReport:
    return submerge.merge(path_of(family, method), out, settings=replace(ROOM, **settings), resume=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tasks", [1, 8, 40])
def test_resume(family: Family, tmp_path: Path, wanted: Any, method: str, tasks: int) -> None:
    interrupt(family, tmp_path / "out", tasks, method)
    report = resume(family, tmp_path / "out", method)
    assert tasks <= report.resumed <= tasks + 2
    assert contents(report.out) == wanted(method)
    assert os.listdir(tmp_path) == ["out"]


def test_stopped_many_times(family: Family, tmp_path: Path, wanted: Any) -> None:
    out = tmp_path / "out"
    interrupt(family, out, 5)
    done = 5
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 6)
            with pytest.raises(Stop):
                resume(family, out)
        done += 6
    report = resume(family, out, threads=1)
    assert report.resumed >= done
    assert contents(report.out) == wanted()


def test_ctrl_c_in_a_notebook(family: Family, tmp_path: Path, wanted: Any) -> None:
    def interrupted(progress: submerge.engine.Progress) -> None:
        if progress.written > progress.total // 3:
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        spans = ChunkReader.spans

        def slowly(*arguments: Any) -> Any:
            time.sleep(0.005)
            return spans(*arguments)

        patch.setattr(ChunkReader, "spans", slowly)
        with pytest.raises(KeyboardInterrupt):
            submerge.merge(path_of(family), tmp_path / "out", settings=ROOM, progress=interrupted)
    assert torch.get_num_threads() == before
    assert not (tmp_path / "out").exists()
    assert contents(resume(family, tmp_path / "out").out) == wanted()


STEPS = ("write_side_files", "_card", "sync_file", "sync_folder", "give_name", "rename", "unlink")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [Stop(), OSError(28, "No space left on device")], ids=["stop", "full"])
def test_stopped_while_it_finishes(
    family: Family, tmp_path: Path, wanted: Any, step: str, overwrite: bool, error: Exception
) -> None:
    out = tmp_path / "out"
    if overwrite:
        write(out, {"old": torch.ones(2)})
    old = contents(out)

    def fail(*_: object, **__: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        if step == "write_side_files":
            patch.setattr(_checkpoint_files, step, fail)
        elif step.startswith("_"):
            patch.setattr(_folder.Output, step, fail)
        elif step == "rename":
            real = os.rename
            patch.setattr(
                _folder.os, "rename", lambda a, b: fail() if str(a).endswith(".incomplete") else real(a, b)
            )
        elif step == "unlink":
            patch.setattr(_folder.Path, step, fail)
        else:
            patch.setattr(_folder, step, fail)
        with pytest.raises((Stop, submerge.WorkError)) as caught:
            submerge.merge(path_of(family), out, settings=ROOM, overwrite=overwrite)
    if isinstance(caught.value, submerge.WorkError):
        assert "No space left" in str(caught.value)
        assert "--resume" in str(caught.value)
    if step == "unlink":  # all is done but for one file of ours
        found = contents(out)
        assert found.pop(JOURNAL)
        assert found == wanted()
        return
    assert contents(out) == old
    report = submerge.merge(path_of(family), out, settings=ROOM, overwrite=overwrite, resume=True)
    assert report.bytes_read == 0
    assert contents(out) == wanted()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone", "zeros"])
def test_a_damaged_shard_is_written_again(family: Family, tmp_path: Path, wanted: Any, damage: str) -> None:
    folder = interrupt(family, tmp_path / "out", 20, threads=1)
    shard = folder / "model.safetensors"
    data = bytearray(shard.read_bytes())
    middle = len(data) // 6  # the first 20 of 57 ranges are written
    if damage == "flip":
        data[middle] ^= 1
    elif damage == "cut":
        del data[middle:]
    elif damage == "grow":
        data += b"x"
    elif damage == "zeros":
        data[middle:] = bytes(len(data) - middle)
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data)
    report = resume(family, tmp_path / "out")
    assert report.resumed == {"flip": 19, "zeros": report.resumed}.get(damage, 0)
    assert report.resumed < 20
    assert contents(report.out) == wanted()


@pytest.mark.parametrize("tail", [b'{"t":1,"k":', b"\0" * 100, b"\xff\xfe\n", b"[]\n", b"}{\n" * 3, b"\n"])
def test_a_damaged_journal_counts_as_far_as_it_is_sound(
    family: Family, tmp_path: Path, wanted: Any, tail: bytes
) -> None:
    folder = interrupt(family, tmp_path / "out", 20, threads=1)
    journal = folder / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:11]) + tail)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            resume(family, tmp_path / "out", threads=1)
    report = resume(family, tmp_path / "out")
    assert report.resumed == 15, "also what was added behind the damage counts"
    assert contents(report.out) == wanted()


def test_an_empty_or_headless_journal_starts_over(family: Family, tmp_path: Path, wanted: Any) -> None:
    for number, keep in enumerate((b"", b'{"submerge"')):
        out = tmp_path / f"{number}" / "out"
        folder = interrupt(family, out, 10)
        (folder / JOURNAL).write_bytes(keep)
        report = resume(family, out)
        assert report.resumed == 0
        assert contents(report.out) == wanted()


def test_without_resume_it_starts_over(family: Family, tmp_path: Path, wanted: Any) -> None:
    folder = interrupt(family, tmp_path / "out", 20, "linear")
    (folder / "stale.txt").write_text("from an older run")
    report = submerge.merge(path_of(family), tmp_path / "out", settings=ROOM)
    assert report.resumed == 0
    assert contents(report.out) == wanted()


def test_resume_of_nothing_is_a_start(family: Family, tmp_path: Path, wanted: Any) -> None:
    assert contents(resume(family, tmp_path / "out").out) == wanted()


def test_other_work_is_not_taken_up(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(family, out, 10)
    message = "another recipe, or from inputs that have changed"
    before = contents(tmp_path)
    with pytest.raises(submerge.RequestError, match=message):
        resume(family, out, "linear")
    recipe = family.recipe("ties", {"density": 0.41}, seed=3)
    with pytest.raises(submerge.RequestError, match=message):
        submerge.merge(recipe, out, settings=ROOM, resume=True)
    with pytest.raises(submerge.RequestError, match=message):
        resume(family, out, shard_size=100_000)
    assert contents(tmp_path) == before, "the unfinished work is still there"
    assert resume(family, out).resumed >= 10


def test_changed_inputs_are_not_mixed(tmp_path: Path) -> None:
    base = state(SHAPES)
    tuned = write(tmp_path / "tuned", perturbed(base, 1))
    made = Family(write(tmp_path / "base", base), (tuned,), "Toy")
    made.write_recipe("ties")
    interrupt(made, tmp_path / "out", 10)
    write(tuned, perturbed(base, 2))
    with pytest.raises(submerge.RequestError, match="inputs that have changed"):
        resume(made, tmp_path / "out")


def test_changed_pickles_are_not_mixed(tmp_path: Path) -> None:
    base = state(SHAPES)
    made = Family(write(tmp_path / "base", base), (tmp_path / "tuned",), "Toy")
    (tmp_path / "tuned").mkdir()
    torch.save(perturbed(base, 1), tmp_path / "tuned" / "pytorch_model.bin")
    made.write_recipe("ties")
    interrupt(made, tmp_path / "out", 10, allow_pickle=True)
    torch.save(perturbed(base, 2), tmp_path / "tuned" / "pytorch_model.bin")
    with pytest.raises(submerge.RequestError, match="inputs that have changed"):
        resume(made, tmp_path / "out", allow_pickle=True)


@pytest.mark.parametrize("how", ["rewritten", "removed"])
def test_inputs_that_change_during_the_run_are_noticed(tmp_path: Path, how: str) -> None:
    base = state(SHAPES)
    made = Family(write(tmp_path / "base", base), (write(tmp_path / "tuned", perturbed(base, 1)),), "Toy")
    finished = _run.Run._finished
    once = Lock()

    def meddle(self: Any, record: RangeRecord) -> None:
        finished(self, record)
        file = tmp_path / "tuned" / "model.safetensors"
        if record.range == 3 and once.acquire(blocking=False):
            data = file.read_bytes()
            file.unlink()
            if how == "rewritten":
                file.write_bytes(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run.Run, "_finished", meddle)
        with pytest.raises(submerge.WorkError, match=r"changed while|cannot be read any more"):
            submerge.merge(made.recipe("linear"), tmp_path / "out", settings=ROOM)
    assert not (tmp_path / "out").exists()


def test_allowing_nan_after_all_does_no_work_again(tmp_path: Path) -> None:
    base = state(SHAPES)
    tuned = perturbed(base, 1)
    tuned["model.norm.weight"][5] = torch.nan
    made = Family(write(tmp_path / "base", base), (write(tmp_path / "tuned", tuned),), "Toy")
    with pytest.raises(submerge.WorkError, match="--allow-nonfinite"):
        submerge.merge(made.recipe("task_arithmetic"), tmp_path / "out", settings=ROOM)
    report = submerge.merge(
        made.recipe("task_arithmetic"),
        tmp_path / "out",
        settings=replace(ROOM, allow_nonfinite=True),
        resume=True,
    )
    assert report.bytes_read == 0
    assert report.nonfinite == {"model.norm.weight": {"the output": 1, str(tmp_path / "tuned"): 1}}


# --- real processes -------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], int]:
    """How many lines the journal of `out` has."""

    def lines() -> int:
        path = tmp_path / "out.incomplete" / JOURNAL
        return path.read_bytes().count(b"\n") if path.exists() else 0

    return lines


@pytest.mark.parametrize("seed", range(5))
def test_kill_9(family: Family, tmp_path: Path, wanted: Any, journal: Callable[[], int], seed: int) -> None:
    method = METHODS[seed % 3]
    when = random.Random(seed).choice([1, 2, 5, 15, 30, 45, 55])
    argv = ["merge", path_of(family, method), "-o", tmp_path / "out"]
    victim = start(argv, tmp_path / "logs", small=True, hold=when)
    until(lambda: journal() >= when)
    victim.kill()
    assert not (tmp_path / "out").exists()
    assert victim.stdout.read_text() == ""
    report = resume(family, tmp_path / "out", method)
    assert report.resumed >= when - 1
    assert contents(report.out) == wanted(method)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(
    family: Family, tmp_path: Path, wanted: Any, journal: Callable[[], int], number: signal.Signals, code: int
) -> None:
    argv = ["merge", path_of(family), "-o", tmp_path / "out"]
    victim = start(argv, tmp_path / "logs", small=True, hold=10)
    until(lambda: journal() >= 10)
    os.kill(victim.pid, number)
    assert victim.wait() == code
    told = victim.stderr.read_text()
    assert "interrupted" in told
    assert "--resume" in told
    assert "Traceback" not in told
    assert victim.stdout.read_text() == ""
    assert not (tmp_path / "out").exists()
    assert start([*argv, "--resume"], tmp_path / "logs", small=True).wait() == 0
    assert contents(tmp_path / "out") == wanted()
    assert "taken over from the interrupted run" in (tmp_path / "logs" / "1.out").read_text()


def test_two_runs_at_once(family: Family, tmp_path: Path, wanted: Any, journal: Callable[[], int]) -> None:
    out = tmp_path / "out"
    victim = start(["merge", path_of(family), "-o", out], tmp_path / "logs", small=True, hold=2)
    until(lambda: journal() >= 2)
    for resumes in (False, True):
        with pytest.raises(submerge.RequestError, match="another run is writing this output"):
            submerge.merge(path_of(family), out, settings=ROOM, resume=resumes)
    victim.release()
    assert victim.wait() == 0
    assert contents(out) == wanted()


def test_the_manifest_tells_no_time(wanted: Any) -> None:
    manifest = json.loads(wanted()["submerge.json"])
    assert set(manifest) == {"submerge", "recipe", "models", "warnings", "nonfinite", "differs", "tensors"}
