"""Processes that are killed while they change a state: it is the old one or the new one, and can go on."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import submerge
from _kills import file_calls, killed_at
from _models import state as random_tensors
from _models import write
from _victim import start
from submerge.continual import TaskRecord
from submerge.store import AdapterWriter

WEIGHTS, MODEL = "adapter_model.safetensors", "model.safetensors"
CHANGES = ("add", "add-whole", "remove", "join")
SHAPES = {f"model.layers.{i}.{name}.weight": (16, 16) for i in range(2) for name in ("q", "v")}


def adapter(folder: Path, base: Path, seed: int) -> str:
    draw = torch.Generator().manual_seed(seed)
    with AdapterWriter(folder) as writer:
        for name, shape in SHAPES.items():
            writer.add(
                name, torch.randn(shape[0], 2, generator=draw), torch.randn(2, shape[1], generator=draw)
            )
        writer.finish(base=str(base))
    return str(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three adapters, a whole model, and the states `two` of `a` and `b`, and `one` of `c`."""
    root = tmp_path_factory.mktemp("kills")
    shapes = SHAPES | {"model.norm.weight": (16,)}
    base = write(root / "base", random_tensors(shapes), {"model_type": "toy"})
    write(root / "whole", random_tensors(shapes, seed=1), {"model_type": "toy"})
    for seed, name in enumerate("abc"):
        adapter(root / name, base, seed)
    for folder, names in (("two", "ab"), ("one", "c")):
        grown = submerge.Continual.begin(root / folder, str(base), statistics="identity")
        for name in names:
            grown.add(name, str(root / name))
    return root


def argv(root: Path, change: str, state: Path) -> list[object]:
    """Return the command that makes a change of a state."""
    return {
        "add": ["many", "add", state, "--task", "c", "--model", root / "c"],
        "add-whole": ["many", "add", state, "--task", "w", "--model", root / "whole"],
        "remove": ["many", "remove", state, "--task", "a"],
        "join": ["many", "join", root / "two", root / "one", "-o", state],
    }[change]


def begin(root: Path, change: str, state: Path) -> None:
    """Put the state that a command changes into its place."""
    if change != "join":
        shutil.copytree(root / "two", state)


def exported(state: Path, out: Path) -> bytes:
    if submerge.Continual(state).status().weight_bytes:
        shutil.rmtree(out, ignore_errors=True)
        return (submerge.Continual(state).export(out, form="checkpoint").out / MODEL).read_bytes()
    return (submerge.Continual(state).export(out, overwrite=True).out / WEIGHTS).read_bytes()


def files(state: Path) -> list[str]:
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Change:
    """A change of a state: how many calls of the file system it makes, and what is exported afterwards."""

    calls: int
    result: bytes


@pytest.fixture(scope="module")
def changes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Change]:
    made = {}
    for name in CHANGES:
        place = tmp_path_factory.mktemp(name)
        begin(prepared, name, place / "state")
        calls = file_calls(argv(prepared, name, place / "state"), place / "log")
        made[name] = Change(calls, exported(place / "state", place / "out"))
    return made


def check_kill(prepared: Path, change: str, wanted: Change, call: int, place: Path) -> None:
    """Kill a change before a call: the state is the one before or after it, and the change can be made."""
    state, out = place / "state", place / "out"
    begin(prepared, change, state)
    killed_at(call, argv(prepared, change, state), place / "log")
    made = state.exists() if change == "join" else submerge.Continual(state).tasks != ("a", "b")
    if not made:
        if change != "join":
            assert exported(state, out) == exported(prepared / "two", out)
        file_calls(argv(prepared, change, state), place / "again")
    assert exported(state, out) == wanted.result
    named = [record.file for record in records(state) if record.name != "b"]
    submerge.Continual(state).remove("b")  # a writer removes what others left, and the task's file
    assert files(state) == sorted(["state.json", ".lock", *named])
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["out", "state"]


def records(state: Path) -> Sequence[TaskRecord]:
    return submerge.Continual(state).status().manifest.tasks


SOME = [(change, share) for change in CHANGES for share in (0.3, 0.7, 1.0)]


@pytest.mark.parametrize(("change", "share"), SOME)
def test_kills(prepared: Path, changes: dict[str, Change], tmp_path: Path, change: str, share: float) -> None:
    wanted = changes[change]
    check_kill(prepared, change, wanted, round(share * (wanted.calls - 1)), tmp_path)


@pytest.mark.slow
def test_a_hundred_kills(prepared: Path, changes: dict[str, Change], tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(100):
        change = draw.choice(list(changes))
        place = tmp_path / str(number)
        place.mkdir()
        check_kill(prepared, change, changes[change], draw.randrange(changes[change].calls), place)
        shutil.rmtree(place)


# --- two writers ------------------------------------------------------------------------------------------


def test_one_process_changes_a_state_at_a_time(prepared: Path, tmp_path: Path) -> None:
    begin(prepared, "add", tmp_path / "state")
    state = submerge.Continual(tmp_path / "state")
    with state._folder.writing():
        victim = start(argv(prepared, "add", tmp_path / "state"), tmp_path / "logs")
        assert victim.wait() == 2
        assert f"process {os.getpid()} is changing this state" in victim.stderr.read_text()
        assert state.tasks == ("a", "b")  # who only reads needs no lock
    state.remove("a")


def test_the_lock_of_a_process_that_has_ended_does_not_hold(prepared: Path, tmp_path: Path) -> None:
    begin(prepared, "add", tmp_path / "state")
    (tmp_path / "state/.lock").write_text("1")
    submerge.Continual(tmp_path / "state").add("c", str(prepared / "c"))


def test_a_failed_change_leaves_the_state(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(prepared, "add", tmp_path / "state")
    state = submerge.Continual(tmp_path / "state")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(submerge.WorkError, match="No space left"):
            state.add("c", str(prepared / "c"))
    assert state.tasks == ("a", "b")
    assert exported(tmp_path / "state", tmp_path / "out")
