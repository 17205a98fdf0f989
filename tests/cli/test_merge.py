"""submerge merge: what it prints, and where."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from _cli import ROOM, cli, merge
from _models import Family, read, write
from submerge.cli import _progress


def test_merge_prints_the_path_and_a_summary(recipe: Path, tmp_path: Path) -> None:
    result = merge(recipe, tmp_path / "out")
    assert result.code == 0
    path, *summary = result.out.splitlines()
    assert path == str(tmp_path / "out")
    assert len(summary) == 3
    assert re.search(r"[1-9][\d.]* [kMG]?B/s$", summary[0])
    assert "peak memory" in summary[1]
    assert summary[2] == "tensors: 9 merged"
    assert result.err == ""


def test_quiet_leaves_the_path_and_warnings(made: Family, tmp_path: Path) -> None:
    write(made.tuned[0], read(made.tuned[0]) | {"extra": torch.ones(1)}, tokens={"a": 0, "b": 1})
    recipe = made.write_recipe("ties")
    for flag in ("-q", "--quiet"):
        result = merge(recipe, tmp_path / flag, flag)
        assert result.out == f"{tmp_path / flag}\n"
        assert all(line.startswith("warning: ") for line in result.err.splitlines())
        assert "1 of its tensors have no place in the output (extra)" in result.err


def test_warnings_go_to_stderr(made: Family, tmp_path: Path) -> None:
    write(made.tuned[0], read(made.tuned[0]) | {"extra": torch.ones(1)}, tokens={"a": 0, "b": 1})
    result = merge(made.write_recipe("ties"), tmp_path / "out")
    assert result.err.startswith("warning: ")
    assert "extra" in result.err
    assert "warning:" not in result.out
    assert result.out.startswith(str(tmp_path / "out"))


def test_merge_json(made: Family, recipe: Path, tmp_path: Path) -> None:
    found = merge(recipe, tmp_path / "out", "--json").json
    assert set(found) == {
        "out", "seconds", "bytes_read", "bytes_written", "reading", "writing", "peak_memory_bytes", "workers",
        "tensors", "resumed", "nonfinite", "differs", "warnings", "rate", "figures", "serve",
    }  # fmt: skip
    assert found["out"] == str(tmp_path / "out")
    assert found["tensors"] == {"merge": 9}
    assert found["bytes_written"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    inputs = sum(t.nbytes for f in (made.base, *made.tuned) for t in read(f).values())
    assert found["bytes_read"] >= inputs


def test_a_terminal_sees_a_bar_on_stderr(recipe: Path, tmp_path: Path) -> None:
    result = cli("merge", recipe, "-o", tmp_path / "out", *ROOM, terminal=True)
    assert result.code == 0
    assert "merging" in result.err
    assert "merging" not in result.out
    assert result.out.splitlines()[0] == str(tmp_path / "out")
    assert re.search(r"100%  [\d.]+ kB at [\d.]+ [kMG]?B/s", result.err), result.err
    silent = cli("merge", recipe, "-o", tmp_path / "quiet", "-q", *ROOM, terminal=True)
    assert (silent.out, silent.err) == (f"{tmp_path / 'quiet'}\n", "")
    assert cli("plan", recipe, *ROOM, terminal=True).code == 0


def test_a_log_gets_a_line_now_and_then(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert merge(recipe, tmp_path / "short").err == ""
    monkeypatch.setattr(_progress, "FIRST", 0.0)
    result = merge(recipe, tmp_path / "out")
    assert re.fullmatch(r"merging: \d+%, [\d.]+ k?B at [\d.]+ [kMG]?B/s(, about \d+ s left)?\n", result.err)
    assert merge(recipe, tmp_path / "quiet", "--quiet").err == ""


def test_the_folder_may_follow_the_recipe(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("merge", recipe, out, "--quiet", *ROOM).out == f"{out}\n"
    assert cli("merge", recipe, out, "-o", out, "--overwrite", "-q", *ROOM).out == f"{out}\n"
    both = cli("merge", recipe, out, "--out", tmp_path / "other", *ROOM)
    assert (both.code, "two folders are named" in both.err) == (2, True)
    none = cli("merge", recipe)
    assert (none.code, "submerge merge recipe.yaml merged/" in none.err) == (2, True)


def test_a_path_that_is_no_utf8(recipe: Path, tmp_path: Path) -> None:
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert merge(recipe, out).code == 0
    assert cli("verify", out, "--no-load").code == 0
    assert json.loads((out / "submerge.json").read_bytes())
    assert "caf\\udce9" in (out / "README.md").read_text(encoding="utf-8")


def test_a_hub_id_without_a_network(made: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = made.write_recipe("ties", base_model="some-org/some-model@abc")
    result = merge(recipe, tmp_path / "out")
    assert result.code in (1, 2)
    assert "some-org/some-model" in result.err
    assert "hf download some-org/some-model --revision abc" in result.err
    assert "Traceback" not in result.err


def test_nothing_is_said_on_stdout_when_it_fails(tmp_path: Path) -> None:
    result = merge(tmp_path / "nowhere.yaml", tmp_path / "out", "--json")
    assert (result.code, result.out) == (2, "")


def test_every_problem_has_a_line(made: Family, tmp_path: Path) -> None:
    recipe = made.write_recipe("ties", {"density": 2, "lamda": 1}, dtype="int4")
    result = merge(recipe, tmp_path / "out")
    lines = result.err.splitlines()
    assert result.code == 2
    assert len(lines) == 3
    assert all(line.startswith("error: ties.yaml:") for line in lines)
    assert "did you mean 'lambda'?" in result.err
