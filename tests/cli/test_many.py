"""`submerge many …`: a week of tasks, what is printed, and what is refused."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from _cli import ROOM, Result, cli
from continual.conftest import Tasks, made
from submerge.cli._many import GATE, _added, export
from submerge.continual import Continual, ProjectorRecord, TaskRecord
from submerge.store import ProjectorSettings

pytest.importorskip("transformers")
pytest.importorskip("peft")

__all__ = ["made"]


def done(*argv: object) -> Result:
    result = cli("many", *argv)
    assert result.code == 0, result.err
    return result


@pytest.fixture
def begun(made: Tasks, state: Path) -> Path:
    done("init", made.base, "-o", state)
    return state


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_the_defaults_are_those_of_a_gate_of_projectors() -> None:
    own, wanted = (inspect.signature(one).parameters for one in (export, Continual.export))
    for name in GATE:
        assert own[name].default == wanted[name].default, name
    assert own["top"].default == ProjectorSettings.top
    assert own["centred"].default == ProjectorSettings.centred


def test_a_week(made: Tasks, begun: Path, tmp_path: Path) -> None:
    result = done("add", begun, *made.option("law"))
    assert result.out.startswith("law: 6 linear maps, rank 4, ")
    assert "rows of 12 inputs" in result.out
    assert "keep its removal exact" in result.out
    added = done("add", begun, *made.option("chess"), "--samples", 1, "--json")
    assert added.json["rows"] < 16
    assert added.json["warnings"][0] in added.err
    assert "warning: " in added.err
    status = done("status", begun)
    assert "law       6     4       12" in status.out
    assert "removal is exact" in status.out
    assert all(done("status", begun, "--condition", "--json").json["conditions"].values())
    result = done("export", begun, "-o", tmp_path / "lora")
    assert result.out == f"{tmp_path / 'lora'}\nadapter of chess, law · rank 7\n"
    result = done("export", begun, "-o", tmp_path / "small", "--rank", 2, "--preset", "paper")
    assert "rank 2, relative error of the updates at most 0." in result.out
    whole = tmp_path / "whole"
    assert (
        done("export", begun, "-o", whole, "--as", "checkpoint", "--json", *ROOM).json["form"] == "checkpoint"
    )
    assert (whole / "model.safetensors").is_file()
    told = done("export", begun, "-o", tmp_path / "base", "--as", "checkpoint", "--scale", 0, *ROOM).out
    assert told.endswith("checkpoint of chess, law · no updates, for the scale is 0\n")
    assert done("remove", begun, "--task", "law").out == "law is removed\n"
    assert "law" not in done("status", begun).out.split("task")[1]


def test_a_whole_model(made: Tasks, begun: Path, tmp_path: Path) -> None:
    model = tmp_path / "tuned"
    shutil.copytree(made.base, model)
    tensors = load_file(model / "model.safetensors")
    changed = {n: t + 0.1 if n.endswith(("q_proj.weight", "norm.weight")) else t for n, t in tensors.items()}
    save_file(changed, model / "model.safetensors", {"format": "pt"})
    given = ["--task", "law", "--model", model, *made.option("law")[4:]]
    result = done("add", begun, *given)
    assert result.out.startswith("law: 2 linear maps, weights of a whole model, ")
    assert " of weights\n" in result.out
    assert "are no linear maps of its layers" in result.err
    assert "weights of whole models: " in done("status", begun).out
    result = done("export", begun, "-o", tmp_path / "lora", "--rank", 16)
    assert "warning: " in result.err
    assert "adapter of law · rank 1" in result.out
    result = done("export", begun, "-o", tmp_path / "whole", "--as", "checkpoint", *ROOM)
    assert result.out == f"{tmp_path / 'whole'}\ncheckpoint of law · dense updates\n"


def test_two_workers(made: Tasks, begun: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done("init", made.base, "-o", other)
    done("add", begun, *made.option("law"))
    done("add", other, *made.option("chess"))
    assert done("join", begun, other, "-o", tmp_path / "both").out == f"{tmp_path / 'both'}\nlaw, chess\n"


def test_progress_is_told(made: Tasks, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submerge.cli import _progress

    monkeypatch.setattr(_progress, "FIRST", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    result = done("add", begun, *made.option("law"), "--batch-size", 4)
    assert result.err.splitlines()[-1].startswith("measuring: 100%, inputs of linear maps")


def test_what_is_told_of_a_projector() -> None:
    own = ProjectorRecord(2048, 12, 3, "cars", "birds", 0.25)
    task = TaskRecord("f", 10, "", "cars", 4, 6, 99, 12, "", "", 0, own)
    wanted = "a projector of 2.05 kB; prototypes: 3, of 12 images; overlap of 25% with birds"
    assert list(_added(task))[-1] == wanted
    frozen = replace(task, projector=ProjectorRecord(0, 12, 1, "cars"))
    assert list(_added(frozen))[-1] == "the base's projector; prototypes: 1, of 12 images"


def refused(state: Path, *argv: object) -> str:
    """Return what a command that is refused says; the state is as it was."""
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path.name != ".lock"}
    result = cli("many", *argv)
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert " — " in result.err
    after = {path: path.read_bytes() for path in state.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    return result.err


def test_what_is_refused(made: Tasks, begun: Path, tmp_path: Path) -> None:
    done("add", begun, *made.option("law"))
    law, chess = made.option("law"), made.option("chess")
    assert "there is a task 'law' already" in refused(begun, "add", begun, *law)
    assert "did you mean 'law'?" in refused(begun, "remove", begun, "--task", "lwa")
    assert "'../law' is no name of a task" in refused(begun, "add", begun, "--task", "../law", *law[2:])
    assert "there are no inputs of the task 'chess'" in refused(begun, "add", begun, *chess[:4])
    assert "changes no linear map" in refused(
        begun, "add", begun, *chess[:2], "--model", made.base, *chess[4:]
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "there are no inputs" in refused(begun, "add", begun, *chess[:4], "--data", empty)
    assert "there is no preset 'papre'" in refused(
        begun, "export", begun, "-o", tmp_path / "x", "--preset", "papre"
    )
    assert "did you mean 'adapter'?" in refused(
        begun, "export", begun, "-o", tmp_path / "x", "--as", "adaptor"
    )
    assert "not a share" in refused(begun, "export", begun, "-o", tmp_path / "x", "--energy", 2)
    assert "is no state" in refused(begun, "status", tmp_path)
    assert "no such device" in refused(begun, "add", begun, *chess, "--device", "gpu")
    assert "exists already" in refused(begun, "init", made.base, "-o", begun)
    assert "both have a task law" in refused(begun, "join", begun, begun, "-o", tmp_path / "x")
    assert "did you mean 'mixed'?" in refused(
        begun, "export", begun, "-o", tmp_path / "x", "--projectors", "mxed"
    )
    assert "the task 'law' has no prototypes" in refused(
        begun, "add", begun, *chess, "--share-projector", "law"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    assert "is not empty" in refused(begun, "export", begun, "-o", tmp_path / "full")
    told = refused(begun, "export", begun, "-o", tmp_path / "full", "--overwrite")
    assert "holds no adapter" in told
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--statistics", "fulll"], "did you mean 'full'?"),
        (["--keep", "some"], "there is no keep 'some'"),
        (["--keep", "none", "--forget", 0.9], "forget needs each task's own moments"),
        (["--keep", "none", "--statistics", "identity"], "saves nothing"),
        (["--statistics", "diag", "--energy", 0.9], "need full statistics, not diag"),
        (["--pooling", "max"], "there are mean, position"),
        (["--missing", "maybe"], "missing is zero or skip"),
        (["--missing", "zero", "--statistics", "identity"], "nothing is known of maps"),
        (["--preset", "paper", "--statistics", "block"], "or with --preset paper say --energy 1"),
    ],
)
def test_options_that_cannot_be(made: Tasks, state: Path, flags: list[object], part: str) -> None:
    assert part in refused(state, "init", made.base, "-o", state, *flags)
    assert not state.exists()


def test_a_preset_goes_with_other_statistics(made: Tasks, state: Path) -> None:
    """By what the error above says."""
    done("init", made.base, "-o", state, "--preset", "paper", "--statistics", "block", "--energy", 1)
    assert done("status", state, "--json").json["lpm"]["scale"] == 3


def test_a_condition_number_that_is_none_is_no_number_of_json(
    made: Tasks, state: Path, tmp_path: Path
) -> None:
    done("init", made.base, "-o", state, "--ridge", 0)
    done("add", state, *made.option("law"), "--samples", 1)
    printed = done("status", state, "--condition", "--json")
    assert "Infinity" not in printed.out
    assert set(printed.json["conditions"].values()) == {None}
    assert "number of Φ: inf" in done("status", state, "--condition").out


def test_weights(made: Tasks, begun: Path, tmp_path: Path) -> None:
    for name in ("law", "poems"):
        done("add", begun, *made.option(name))
    result = done("export", begun, "-o", tmp_path / "a", "--weight", "law=0.5", "--scale", "1.4")
    assert result.out.endswith("adapter of law × 0.5, poems · rank 6\n")
    for wrong, told in (
        (["law"], "'law' is not TASK=NUMBER"),
        (["law=much"], "'law=much' is not TASK=NUMBER"),
        (["law=1", "--weight", "law=2"], "law has a weight twice"),
        (["lav=1"], "did you mean 'law'"),
    ):
        refused = cli("many", "export", begun, "-o", tmp_path / "b", "--weight", *wrong)
        assert refused.code == 2
        assert told in refused.err
