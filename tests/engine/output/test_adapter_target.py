"""Merges of adapters: what is read and held for them, what comes out, and runs that are taken up again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _adapters import FIRST, Tuned, far, make_tuned, same_state
from _models import ROOM, contents, perturbed, read, state, write
from _support import MATRIX_CASES, Case
from engine.output.helpers_output import output_of
from store.helpers_adapter import by_hand, stored
from submerge.engine import MergePlan, merge_state_dicts
from submerge.engine.output import AdapterTarget, Records, _run
from submerge.engine.output._adapter_target import adapter_base, adapter_dtype, agreed
from submerge.engine.work import Meter, RangeRecord
from submerge.methods import METHODS
from submerge.store import JOURNAL

# --- in memory ------------------------------------------------------------------------------------

SHAPES = {"h.0.q.weight": (12, 8), "h.0.k.weight": (8, 12), "h.0.norm.weight": (12,), "embed.weight": (20, 8)}


@pytest.mark.parametrize("case", MATRIX_CASES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_state_dicts_merge_as_folders_do(case: Case, threads: int, tmp_path: Path) -> None:
    base = state(SHAPES)
    models = [perturbed(base, seed) for seed in range(3)]
    kept = {name: tensor.clone() for name, tensor in base.items()}
    found = case.merge(base, models, threads=threads)
    folders = [write(tmp_path / f"{i}", model) for i, model in enumerate(models)]
    weights = case.options.get("weight")
    own = [{"parameters": {"weight": weight}} for weight in weights] if weights else [{}] * 3
    recipe = {
        "merge_method": case.method,
        "base_model": str(write(tmp_path / "base", base)),
        "models": [{"model": str(folder), **more} for folder, more in zip(folders, own, strict=True)],
        "parameters": {key: value for key, value in case.options.items() if key != "weight"},
    }
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    same_state(found, read(tmp_path / "out"), 0)
    same_state(base, kept, 0)
    with pytest.raises(submerge.RequestError, match="needs a base_model"):
        merge_state_dicts(models, method=case.method)


# --- what is held, and where it goes --------------------------------------------------------------


def test_pickled_adapters(two: Tuned, tmp_path: Path) -> None:
    """Factors and whole modules of `adapter_model.bin` go where those of safetensors go."""
    made = make_tuned(tmp_path, "llama", FIRST | {"modules_to_save": ["lm_head"]})
    shutil.copytree(made.adapters[0], tmp_path / "pickled")
    torch.save(stored(made.adapters[0]), tmp_path / "pickled" / "adapter_model.bin")
    (tmp_path / "pickled" / "adapter_model.safetensors").unlink()
    trusting = submerge.Settings(max_memory=64 * 10**9, allow_pickle=True)
    for form in ("adapter", "checkpoint"):
        recipe = made.recipe(models=[tmp_path / "pickled"], output={"as": form})
        with pytest.raises(submerge.RequestError, match="allow-pickle"):
            submerge.merge(recipe, tmp_path / form, settings=ROOM)
        submerge.merge(recipe, tmp_path / form, settings=trusting)
        made.merge(tmp_path / f"{form}-safe", output={"as": form})
        same_state(read(tmp_path / form), read(tmp_path / f"{form}-safe"), 0)
    same_state(made.loaded(tmp_path / "adapter"), made.merged[0], 1e-5)


def test_a_module_that_one_adapter_saved_and_another_tuned(tmp_path: Path) -> None:
    made = make_tuned(
        tmp_path,
        "llama",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["o_proj"]},
        {"r": 2, "target_modules": ["q_proj", "o_proj"]},
    )
    made.merge(tmp_path / "checkpoint", own={"weight": 0.5})
    made.merge(tmp_path / "adapter", own={"weight": 0.5}, output={"as": "adapter"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]
    assert not any("o_proj" in name for name in config["target_modules"])
    same_state(made.loaded(tmp_path / "adapter"), read(tmp_path / "checkpoint"), 1e-5)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_a_head_of_several_modules(tmp_path: Path, task_type: str | None) -> None:
    """PEFT saves `classifier` by itself for the type of the task, and allows no module to save within it."""
    option = {"r": 2, "target_modules": ["query"], "task_type": task_type, "modules_to_save": ["classifier"]}
    made = make_tuned(tmp_path, "roberta", option, option)
    for form in ("checkpoint", "adapter"):
        made.merge(tmp_path / form, own={"weight": 0.5}, output={"as": form})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    one, several = ["classifier"], ["classifier.dense", "classifier.out_proj"]
    assert config["modules_to_save"] == (one if task_type else several)
    same_state(made.loaded(tmp_path / "adapter"), read(tmp_path / "checkpoint"), 1e-5)


def test_the_base_is_not_opened_where_it_is_not_needed(two: Tuned, tmp_path: Path) -> None:
    """Neither its weights nor its shapes are asked for: adapters merge where the base is not."""
    two.merge(tmp_path / "here", output={"as": "adapter"})
    two.merge(tmp_path / "away", output={"as": "adapter"}, base="org/elsewhere")
    same_state(stored(tmp_path / "away"), stored(tmp_path / "here"), 0)
    config = json.loads((tmp_path / "away" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/elsewhere"
    two.merge(tmp_path / "none", output={"as": "adapter"}, base=False)
    assert (tmp_path / "none" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "here" / "adapter_model.safetensors"
    ).read_bytes()


def test_bare_parameters_and_kept_names(tmp_path: Path) -> None:
    """A router is a bare parameter for PEFT, and comes back as one."""
    made = make_tuned(
        tmp_path, "mixtral", {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}
    )
    for base in (True, False):
        out = tmp_path / f"{base}"
        made.merge(out, output={"as": "adapter"}, base=base)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["target_parameters"] == [f"model.layers.{i}.mlp.gate.weight" for i in range(2)]
        same_state(made.loaded(out), made.merged[0], 1e-5)


def test_modules_that_one_adapter_lacks(tmp_path: Path) -> None:
    """What one adapter does not touch is zero for methods that count."""
    made = make_tuned(tmp_path, "llama", FIRST, FIRST | {"target_modules": ["q_proj", "down_proj"]})
    for method in ("task_arithmetic", "ssam", "tsv_m", "model_stock"):
        made.merge(
            tmp_path / f"{method}-c", method, own={"weight": 0.5} if method == "task_arithmetic" else {}
        )
        made.merge(
            tmp_path / f"{method}-a",
            method,
            own={"weight": 0.5} if method == "task_arithmetic" else {},
            output={"as": "adapter", "rank": 16},
        )
        same_state(made.loaded(tmp_path / f"{method}-a"), read(tmp_path / f"{method}-c"), 5e-5)


UPDATES = [
    n for n, m in METHODS.items() if not m.gate and (m.origin != "zero" or m.coefficients) and n != "cat"
]


@pytest.mark.parametrize("method", UPDATES)
def test_every_method_of_updates_makes_the_adapter_of_its_checkpoint(
    method: str, two: Tuned, tmp_path: Path
) -> None:
    """Cut at a rank that none of its matrices exceeds, an adapter is all that the method computes."""
    own = {"weight": 0.5} if METHODS[method].option("weight") else {}
    shared = {"parameters": {"statistics": "identity"}} if METHODS[method].moments else {}
    shared |= {"parameters": {"t": 0.01}} if METHODS[method].option("t") else {}
    made = replace(two, adapters=two.adapters[: METHODS[method].max_models])
    made.merge(tmp_path / "checkpoint", method, own=own, **shared)
    made.merge(tmp_path / "adapter", method, own=own, output={"as": "adapter", "rank": 64}, **shared)
    same_state(made.loaded(tmp_path / "adapter"), read(tmp_path / "checkpoint"), 5e-5)


def test_filters_and_gradients_hold_for_adapters(two: Tuned, tmp_path: Path) -> None:
    scale = [{"filter": "self_attn", "value": [0.0, 1.0]}, {"value": 0.5}]
    two.merge(tmp_path / "out", parameters={"scale": scale}, output={"as": "adapter"})
    folded = two.loaded(tmp_path / "out")
    total = {n: sum((m[n] - two.state[n] for m in two.merged), torch.zeros(())) for n in two.state}
    wanted = {
        name: two.state[name] + update * (float("layers.1" in name) if "self_attn" in name else 0.5)
        for name, update in total.items()
    }
    assert far(folded, wanted) < 1e-5


# --- stopped and taken up -------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    """What a test stops a run with."""


@pytest.mark.parametrize("method", ["cat", "ssam"])
def test_a_checkpoint_of_adapters_goes_on(
    method: str, two: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, one = two.recipe(method), submerge.Settings(threads=1, max_memory=64 * 10**9)
    submerge.merge(recipe, tmp_path / "whole" / "out", settings=one)
    finished = _run.Run._finished
    count = iter(range(100))

    def counted(self: Any, record: RangeRecord) -> None:
        finished(self, record)
        if next(count) == 10:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", counted)
        with pytest.raises(Stop):
            submerge.merge(recipe, tmp_path / "part" / "out", settings=one)
    assert not (tmp_path / "part" / "out").exists()
    report = submerge.merge(recipe, tmp_path / "part" / "out", settings=one, resume=True)
    assert report.resumed == 11
    assert contents(tmp_path / "part" / "out") == contents(tmp_path / "whole" / "out")


def test_an_adapter_that_changed_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter's file is an input as any other: a run on another one starts anew."""
    made = make_tuned(tmp_path, "llama", FIRST)
    one = submerge.Settings(threads=1, max_memory=64 * 10**9)

    def stop(self: Any, record: RangeRecord) -> None:
        finished(self, record)
        raise Stop

    finished = _run.Run._finished
    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stop)
        with pytest.raises(Stop):
            submerge.merge(made.recipe(), tmp_path / "out", settings=one)
    by_hand(made.adapters[0], {"q.lora_A.weight": torch.ones(2, 4)})
    with pytest.raises(submerge.RequestError):
        submerge.merge(made.recipe(), tmp_path / "out", settings=one, resume=True)


# --- as the target of a run ----------------------------------------------------------------------


def test_an_adapter_is_not_resumed(two: Tuned, tmp_path: Path) -> None:
    plan = submerge.plan(two.recipe("cat", output={"as": "adapter"}), ROOM)
    with output_of(plan, tmp_path / "out") as output:
        target = AdapterTarget(plan, output, Meter())
        target.accept(RangeRecord(0))
        assert list(target.resume()) == []
        assert not target.forks
        assert target.total == sum(tensor.numel for tensor in plan.tensors)
    assert len((output.folder / JOURNAL).read_text().splitlines()) == 1, "its head alone"


def test_what_was_left_out_of_an_adapter_is_told(two: Tuned, tmp_path: Path) -> None:
    plan = submerge.plan(two.recipe("cat", output={"as": "adapter"}), ROOM)
    with output_of(plan, tmp_path / "out") as output:
        target, records = AdapterTarget(plan, output, Meter()), Records(plan)
        assert target.warnings(records) == []
        records.add(RangeRecord(0, figures={"left_out": 0.5}))
        name = plan.tensors[0].name
        assert target.warnings(records) == [
            f"1 tensor differs from the base and has no place in an adapter: {name}"
        ]
        assert target.manifest_fields(records) == {"modules": {name: {"left_out": 0.5}}}


def test_the_base_and_the_type_of_an_adapter(two: Tuned) -> None:
    def planned(method: str = "cat", **more: Any) -> MergePlan:
        return submerge.plan(two.recipe(method, output={"as": "adapter"}, **more), ROOM)

    assert adapter_base(planned())[0] == str(two.base)
    assert adapter_dtype(planned()) == "float32"
    assert adapter_dtype(planned(dtype="float16")) == "float16"
    assert agreed(["a", "a"]) == "a"
    assert agreed(["a", None]) is None
