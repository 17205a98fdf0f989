"""Merges whose method keeps a gate: recipes, plans, and the folders that are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import submerge
from _cli import cli, merge
from _mass_tasks import Served
from _models import contents

pytest.importorskip("transformers")


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"parameters": {"routing_layers": "0,9"}}, ["routing_layers names layer 9", "0 to 1"]),
        ({"parameters": {"routing_layers": "nowhere"}}, ["no tensor has that in its name"]),
        ({"parameters": {"routing_layers": "depth:2"}}, ["routing_layers cannot be 'depth:2'"]),
        ({"parameters": {"rank": 2, "compression": "ratio:0.1"}}, ["both rank and compression"]),
        ({"parameters": {"compression": "much"}}, ["compression is 'much'"]),
        ({"parameters": {"select": [{"filter": "a", "value": "top1"}]}}, ["one value for all tensors"]),
        ({"merge_method": "tsv_m", "parameters": {}}, ["'name' says something about a task"]),
        ({"output": {"as": "adapter"}}, ["keeps a gate"]),
    ],
)
def test_wrong_recipes_exit_2(bert: Served, tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    result = merge(write(tmp_path / "r.yaml", bert.recipe() | change), tmp_path / "out")
    assert result.code == 2
    for part in parts:
        assert part in result.err, result.err


def test_tasks_that_do_not_fit_exit_2(bert: Served, tmp_path: Path) -> None:
    recipe = bert.recipe()
    recipe["models"][0]["head"] = "pooler.nothing"
    recipe["models"][1]["name"] = "task2"
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "2 models are named 'task2'" in result.err
    recipe["models"][1]["name"] = "task1"
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "named by head: pooler.nothing" in result.err
    recipe = bert.recipe()
    recipe["models"].append({"model": str(bert.root / "base2"), "name": "bare"})
    bert.base.save_pretrained(bert.root / "base2")
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "no head is found in bare" in result.err
    many = bert.recipe()
    many["models"] = [{"model": str(bert.paths[0]), "name": f"t{i}"} for i in range(40)]
    result = merge(write(tmp_path / "r.yaml", many), tmp_path / "out")
    assert result.code == 2
    assert "40 tasks do not fit into weights of rank 32" in result.err


def test_tasks_of_other_bases_exit_2(bert: Served, llama: Served, tmp_path: Path) -> None:
    recipe = bert.recipe()
    recipe["models"][1]["model"] = str(llama.paths[0])
    result = merge(write(tmp_path / "r.yaml", recipe), tmp_path / "out")
    assert result.code == 2
    assert "tensors are missing" in result.err


def test_bytes_do_not_depend_on_threads_and_a_stopped_run_resumes(
    bert: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submerge.engine.output import _run

    one_thread = submerge.Settings(threads=1, max_memory=64 * 10**9)
    three = submerge.Settings(threads=3, max_memory=64 * 10**9)
    submerge.merge(bert.recipe(), tmp_path / "a" / "out", settings=one_thread)
    submerge.merge(bert.recipe(), tmp_path / "b" / "out", settings=three)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")

    class Stop(Exception):  # noqa: N818
        pass

    finished = _run.Run._finished

    def stop(self: Any, record: Any) -> None:
        finished(self, record)
        if "layer.1.output.dense" in self.plan.tensors[record.tensor].name:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stop)
        with pytest.raises(Stop):
            submerge.merge(bert.recipe(), tmp_path / "c" / "out", settings=one_thread)
    part = next((tmp_path / "c" / "out.incomplete" / ".bank").glob("*.safetensors"))
    part.unlink()  # what is lost is made again
    report = submerge.merge(bert.recipe(), tmp_path / "c" / "out", settings=one_thread, resume=True)
    assert report.resumed
    assert contents(tmp_path / "c" / "out") == contents(tmp_path / "a" / "out")


def test_plan_and_explain_know_the_gate(bert: Served, tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", bert.recipe())
    plan = cli("plan", path, "--json", "--max-memory", "64GB").json
    assert [task["name"] for task in plan["bank"]["tasks"]] == [f"task{i}" for i in range(4)]
    size = sum(t.nbytes for t in load_file(bert.merged("default") / "bank.safetensors").values())
    assert size <= plan["bank"]["most"] < 1.1 * size
    text = cli("plan", path, "--max-memory", "64GB")
    assert text.code == 0
    assert "4 tasks" in text.out
    assert "with the plain checkpoint at most" in text.out
    explained = cli("explain", path, "-t", "layer.0.output.dense.weight")
    assert explained.code == 0
    bank = load_file(bert.merged("default") / "bank.safetensors")
    told = {
        line["tensor"]: line["keeps"]
        for line in cli("explain", path, "-t", "*", "--json").json
        if "keeps" in line
    }
    name = next(n for n in told if n.endswith("layer.0.output.dense.weight"))
    rank = bank[f"tasks.1.{name}.values"].numel()
    size = sum(bank[f"tasks.1.{name}.{part}"].nbytes for part in ("left", "values", "right"))
    assert told[name][1] == {"task": "task1", "rank": rank, "bytes": size}
    assert f"keeps  task1: at most rank {rank}, " in explained.out
    norm = next(n for n in told if n.endswith("layer.0.output.LayerNorm.weight"))
    assert told[norm][1] == {"task": "task1", "bytes": bank[f"tasks.1.{norm}.whole"].nbytes}
    heads = sum(tensor.nbytes for key, tensor in bank.items() if key.startswith("heads."))
    assert heads + sum(k["bytes"] for each in told.values() for k in each) == plan["bank"]["most"]


def test_the_card_says_how_to_load_it(bert: Served) -> None:
    card = (bert.merged("default") / "README.md").read_text()
    assert "It serves 4 tasks as one model: `task0`, `task1`, `task2`, `task3`." in card
    assert "model = submerge.load('default')" in card
    assert "task='task0'" in card


def test_a_checkpoint_that_is_the_base_beside_a_bank_is_sound(bert: Served) -> None:
    report = submerge.verify(bert.merged("base-itself", fixed="base", others="base"))
    assert not report.problems
