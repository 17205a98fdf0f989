"""What is finished is recognised by its config; what fails leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.replication.cache import Result, cached, read, timed, trained


def _write(text: str) -> object:
    def make(folder: Path, measured: Result) -> None:
        with timed(measured):
            (folder / "file").write_text(text)
        measured["sizes"] = {1: len(text)}

    return make


def test_a_result_is_made_once_for_each_config(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    first = cached(folder, {"steps": (1, 2)}, _write("one"))  # a tuple is a list in a marker
    assert first == read(folder), "what is returned is what will be read"
    assert first["sizes"] == {"1": 3}
    assert cached(folder, {"steps": [1, 2]}, lambda *_: pytest.fail("it was made again")) == first
    assert cached(folder, {"steps": [1]}, _write("longer"))["sizes"] == {"1": 6}
    assert (folder / "file").read_text() == "longer"
    assert trained([folder], "all") == [{"steps": [1]}]


def test_what_fails_leaves_the_earlier_result(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    first = cached(folder, {"seed": 0}, _write("one"))

    def fail(part: Path, _: Result) -> None:
        (part / "file").write_text("half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(folder, {"seed": 1}, fail)
    assert read(folder) == first
    assert (folder / "file").read_text() == "one"
    cached(folder, {"seed": 1}, _write("two"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result"], "what was left is removed"


def test_missing_models_are_named(tmp_path: Path) -> None:
    cached(tmp_path / "a", {}, _write("one"))
    with pytest.raises(SystemExit, match=r"not trained yet: b \(lora, seed 0\) — run `train` first"):
        trained([tmp_path / "a", tmp_path / "b"], "lora, seed 0")
