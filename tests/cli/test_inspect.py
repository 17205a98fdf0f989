"""`submerge inspect`: what is printed and drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import submerge
from _cli import ROOM, cli
from _models import Family
from submerge import Inspection
from submerge.cli import _progress


def test_it_prints_means_and_draws(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "overlap.svg"
    result = cli("inspect", recipe, "--rank", 4, "--plot", picture, *ROOM)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "2 models change 4 weight matrices; all figures are means"
    assert lines[-1] == f"drawn in {picture}"
    heads = {line.split()[0]: line.split()[1] for line in lines if "  0." in line}
    assert heads.keys() == {"tuned0", "tuned1", "attn.q", "mlp.up", "layer"}
    assert heads["attn.q"] == "2"
    assert "kept: half    max   full" in result.out
    assert picture.read_text().startswith("<?xml")
    told = cli("inspect", recipe, "--plot", picture, *ROOM)
    assert told.code == 2
    assert "the file exists — choose another name, or allow --overwrite" in told.err
    assert cli("inspect", recipe, "-q", "--plot", picture, "--overwrite", *ROOM).code == 0


def test_json_has_everything(recipe: Path) -> None:
    result = cli("inspect", recipe, "--rank", 4, "--json", "-q", *ROOM)
    assert result.err == ""
    settings = submerge.Settings(max_memory=64 * 10**9)
    assert Inspection.from_dict(result.json) == submerge.inspect_updates(recipe, rank=4, settings=settings)


def test_progress_tells_the_matrices(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "FIRST", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    lines = cli("inspect", recipe, *ROOM).err.splitlines()
    assert lines[0] == "inspecting: 0%, 0 of 4 matrices"
    assert lines[-1] == "inspecting: 100%, 4 of 4 matrices, about 0 s left"
    assert "inspecting" in cli("inspect", recipe, *ROOM, terminal=True).err


def test_one_of_several_documents_is_looked_at(made: Family, recipe: Path, tmp_path: Path) -> None:
    plain = cli("inspect", recipe, "--rank", 4, "--json", "-q", *ROOM).json
    named = yaml.safe_dump({"name": "first", **yaml.safe_load(recipe.read_text())})
    several = tmp_path / "several.yaml"
    several.write_text(
        f"{named}\n---\nmerge_method: linear\nmodels: [first, {made.base}]\nparameters: {{weight: 1}}\n"
    )
    arguments = (several, "--rank", 4, "--json", "-q", *ROOM)
    assert cli("inspect", *arguments, "--document", "first").json == plain
    for more, told in (
        ((), "it merges results of other documents, which are not there: first"),
        (("--document", "second"), "no document is called 'second' — documents are called 'first'"),
    ):
        refused = cli("inspect", *arguments, *more)
        assert refused.code == 2
        assert told in refused.err
    several.write_text(f"{named}\n---\n{named.replace('name: first', 'name: last')}")
    assert cli("inspect", *arguments).json == plain


def test_wrong_requests_end_with_2(made: Family, recipe: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.yaml"
    single.write_text(f"merge_method: ssam\nbase_model: {made.base}\nmodels: [{{model: {made.tuned[0]}}}]\n")
    for arguments, told in (
        ((single,), "models: an overlap is one of two models or more; found 1 besides the base"),
        ((recipe, "--rank", 0), "--rank"),
        ((recipe, "--plot", tmp_path / "overlap.pdf"), "a picture is written as .png or .svg"),
        ((recipe, "--plot", tmp_path / "nowhere" / "o.png"), "there is no such folder"),
        ((recipe, "--max-memory", "1MB"), "do not hold one worker"),
        ((tmp_path / "no.yaml",), "no.yaml"),
    ):
        result = cli("inspect", *arguments)
        assert result.code == 2, result.err
        assert told in result.err
        assert "Traceback" not in result.err


def test_many_pairs_are_cut_to_those_that_overlap_most(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.cli._inspect.MOST_PAIRS", 0)
    assert "and 1 pairs that overlap less" in cli("inspect", recipe, *ROOM).out
