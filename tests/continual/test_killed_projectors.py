"""Processes that are killed while they change or export a state of tasks with projectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import submerge
from _kills import file_calls, imported, killed_at
from _models import ROOM
from continual.helpers_images import ImageTasks
from submerge.store import BANK, JOURNAL, MANIFEST

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def grown(images: ImageTasks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states `two` of birds and signs, and `one` of cars, and an export of `one` in each form.

    `base` is theirs, of a class that nobody knows, so that no process needs the time to import transformers.
    """
    root = tmp_path_factory.mktemp("grown")
    shutil.copytree(images.base, root / "base")
    (root / "base/config.json").write_text("{}")
    for folder, names in (("two", ("birds", "signs")), ("one", ("cars",))):
        state = submerge.Continual.begin(root / folder, images.base)
        for name in names:
            state.add(*images.of(name))
    for form in ("adapter", "checkpoint"):
        submerge.Continual(root / "one").export(root / f"old-{form}", form=form, settings=ROOM)
    return root


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, but for the card, which has its name."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return {name: data for name, data in found.items() if name != "README.md"}


def exported(state: Path, out: Path) -> dict[str, bytes]:
    return files(submerge.Continual(state).export(out, overwrite=True).out)


@pytest.mark.parametrize("share", [0.4, 0.8, 1.0])
@pytest.mark.parametrize("change", ["remove", "join"])
def test_a_change_is_made_or_not(grown: Path, tmp_path: Path, change: str, share: float) -> None:
    argv = {
        "remove": ["many", "remove", tmp_path / "state", "--task", "birds"],
        "join": ["many", "join", grown / "two", grown / "one", "-o", tmp_path / "state"],
    }[change]

    def begin() -> None:
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        if change == "remove":
            shutil.copytree(grown / "two", tmp_path / "state")

    begin()
    calls = file_calls(argv, tmp_path / "log")
    wanted = exported(tmp_path / "state", tmp_path / "wanted")
    begin()
    killed_at(round(share * (calls - 1)), argv, tmp_path / "log")
    state = tmp_path / "state"
    made = state.exists() if change == "join" else submerge.Continual(state).tasks != ("birds", "signs")
    if not made:
        if change == "remove":
            assert exported(state, tmp_path / "out") == exported(grown / "two", tmp_path / "before")
        file_calls(argv, tmp_path / "log")
    assert exported(state, tmp_path / "out") == wanted


def export(grown: Path, form: str, out: Path) -> list[object]:
    """Return the command that replaces an old export at `out`, after it was put there."""
    shutil.copytree(grown / f"old-{form}", out)
    argv = ["many", "export", grown / "two", "-o", out, "--as", form, "--overwrite", "--threads", 1]
    return [*argv, "--base", grown / "base"]


@pytest.fixture(scope="module", params=["adapter", "checkpoint"])
def whole(
    request: pytest.FixtureRequest, grown: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, int, dict[str, bytes]]:
    """A form, how many calls its export makes, and the files that it writes."""
    form, place = request.param, tmp_path_factory.mktemp("whole")
    calls = file_calls(export(grown, form, place / "out"), place / "log")
    return form, calls, files(place / "out")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.95, 1.0])
def test_an_export_is_complete_or_the_old_one(
    grown: Path, whole: tuple[str, int, dict[str, bytes]], tmp_path: Path, share: float
) -> None:
    form, calls, wanted = whole
    out, aside = tmp_path / "out", tmp_path / "out.replaced"
    argv, old = export(grown, form, out), files(out)
    assert {BANK, MANIFEST} <= wanted.keys()
    killed_at(round(share * (calls - 1)), argv, tmp_path / "log")
    there = files(out if out.exists() else aside)
    assert {name: data for name, data in there.items() if name != JOURNAL} in (old, wanted)
    shutil.rmtree(aside, ignore_errors=True)  # what is set aside is the user's to look at
    file_calls(argv, tmp_path / "log")
    assert files(out) == wanted


def test_so_little_is_exported_without_numba_and_a_base_of_no_class_without_transformers(
    grown: Path, tmp_path: Path
) -> None:
    argv = [str(word) for word in export(grown, "checkpoint", tmp_path / "out")]
    assert imported(argv, {"numba", "transformers"}) == set()
