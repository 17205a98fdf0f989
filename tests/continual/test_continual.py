"""A state of tasks: what is exported from it, whatever its history."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _adapters import same_state
from _models import ROOM, quiet_transformers
from _updates import normal
from calibrate.helpers_plain import factors
from continual.conftest import Tasks
from store.helpers_adapter import copied
from submerge.algebra import BlockMoment, Moment, TriangleMoment
from submerge.continual import MeasuredTask
from submerge.store import file_digest

WEIGHTS = "adapter_model.safetensors"
RIDGE = 1e-3


def grown(made: Tasks, state: Path, *names: str, **options: Any) -> submerge.Continual:
    found = submerge.Continual.begin(state, made.base, **options)
    for name in names:
        found.add(*made.of(name))
    return found


def exported(state: submerge.Continual, out: Path, **options: Any) -> bytes:
    return (state.export(out, **options).out / WEIGHTS).read_bytes()


# --- the merge against the formula ------------------------------------------------------------------------


def inputs_of(made: Tasks, name: str) -> dict[str, torch.Tensor]:
    """Return the inputs [N, n] of every linear map in a task's own model, by PEFT, in float64."""
    t = quiet_transformers()
    import peft

    model = t.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float64)
    wrapped = peft.PeftModel.from_pretrained(model, str(made.root / name)).double().merge_and_unload().eval()
    tokenizer = t.AutoTokenizer.from_pretrained(made.base)
    rows: dict[str, list[torch.Tensor]] = {}

    def hook(path: str) -> Any:
        return lambda module, given: rows.setdefault(path, []).append(
            given[0].reshape(-1, given[0].shape[-1])
        )

    for path, module in wrapped.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in path:
            module.register_forward_pre_hook(hook(path))
    for line in (made.root / f"{name}.jsonl").read_text().splitlines():
        with torch.no_grad():
            wrapped(**tokenizer(json.loads(line)["text"], return_tensors="pt"))
    return {path: torch.cat(parts) for path, parts in rows.items()}


def batch_solution(
    made: Tasks, names: list[str], missing: str = "skip", scale: float = 1.0, diag: bool = False
) -> dict[str, Any]:
    """Return λ (Σ Δ_t C_t) (Σ C_t)⁻¹ of each map, with C_t = X_tᵀ X_t / N_t + ε tr/n I, in float64."""
    updates = {name: factors(made.root / name) for name in names}
    rows = {name: inputs_of(made, name) for name in names}
    found = {}
    for path in sorted({path for own in updates.values() for path in own}):
        counting = [name for name in names if missing == "zero" or path in updates[name]]
        moments = {}
        for name in counting:
            x = rows[name][path]
            c = x.T @ x / len(x)
            c = c.diag().diag() if diag else c
            moments[name] = c + RIDGE * c.trace() / len(c) * torch.eye(len(c), dtype=torch.float64)
        total = sum(
            b @ a @ moments[name]
            for name in counting
            if path in updates[name]
            for a, b in [updates[name][path]]
        )
        found[path] = scale * torch.linalg.solve(sum(moments.values()), total.T).T
    return found


def products(folder: Path) -> dict[str, torch.Tensor]:
    return {path: b @ a for path, (a, b) in factors(folder).items()}


@pytest.mark.parametrize("keep", ["full", "none"])
def test_the_export_is_the_batch_solution(made: Tasks, state: Path, tmp_path: Path, keep: str) -> None:
    names = ["law", "chess", "poems"] if keep == "full" else ["law", "poems"]
    report = grown(made, state, *names, keep=keep).export(tmp_path / "out")
    assert report.tasks == tuple(sorted(names))
    assert report.rank == (9 if keep == "full" else 6)
    same_state(products(report.out), batch_solution(made, names), 1e-6)


def test_tasks_have_a_say_where_they_adapt_nothing(made: Tasks, state: Path, tmp_path: Path) -> None:
    report = grown(made, state, "law", "chess", missing="zero", scale=2.0).export(tmp_path / "out")
    same_state(products(report.out), batch_solution(made, ["law", "chess"], "zero", 2.0), 1e-6)


def test_one_task_is_exported_as_it_was_trained(made: Tasks, state: Path, tmp_path: Path) -> None:
    report = grown(made, state, "law").export(tmp_path / "out")
    same_state(products(report.out), products(made.root / "law"), 1e-6)


def test_peft_loads_it_and_the_checkpoint_is_its_merge(made: Tasks, state: Path, tmp_path: Path) -> None:
    import peft

    t = quiet_transformers()
    grown_state = grown(made, state, "law", "chess")
    adapter = grown_state.export(tmp_path / "lora").out
    model = t.AutoModelForCausalLM.from_pretrained(made.base)
    merged = copied(peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload())
    report = grown_state.export(tmp_path / "whole", form="checkpoint", settings=ROOM)
    whole = copied(t.AutoModelForCausalLM.from_pretrained(report.out))
    same_state({k: v.double() for k, v in whole.items()}, {k: v.double() for k, v in merged.items()}, 1e-5)
    for folder in (adapter, report.out):
        assert "* `chess`" in (folder / "README.md").read_text()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == made.base


def test_a_smaller_rank(made: Tasks, state: Path, tmp_path: Path) -> None:
    grown_state = grown(made, state, "law", "chess")
    whole, small = grown_state.export(tmp_path / "a"), grown_state.export(tmp_path / "b", rank=3)
    assert (whole.rank, small.rank) == (7, 3)
    assert whole.error < 1e-6
    exact, cut = products(whole.out), products(small.out)
    far = max(float((exact[n] - cut[n]).norm() / exact[n].norm()) for n in exact)
    assert far == pytest.approx(small.error, rel=1e-3)


def test_options_of_an_export(made: Tasks, state: Path, tmp_path: Path) -> None:
    grown_state = grown(made, state, "law", "chess")
    plain, paper = (
        exported(grown_state, tmp_path / "a"),
        exported(grown_state, tmp_path / "b", preset="paper"),
    )
    assert plain != paper
    other = exported(grown_state, tmp_path / "c", preset="paper", energy=1.0, scale=1.0)
    assert other == plain
    begun_so = grown(made, tmp_path / "paper", "law", "chess", preset="paper")
    assert exported(begun_so, tmp_path / "e") == paper
    assert exported(begun_so, tmp_path / "f", preset="default") == plain
    same_state(
        products(grown_state.export(tmp_path / "d", scale=3.0).out),
        {name: 3 * value for name, value in products(tmp_path / "a").items()},
        1e-5,
    )


@pytest.mark.parametrize("statistics", ["diag", "lowrank", "identity"])
def test_other_statistics(made: Tasks, state: Path, tmp_path: Path, statistics: str) -> None:
    found = submerge.Continual.begin(state, made.base, statistics=statistics)
    for name in ("law", "chess"):
        task, model, data = made.of(name)
        found.add(task, model, None if statistics == "identity" else data)
    merged = products(found.export(tmp_path / "out").out)
    if statistics == "identity":  # the mean, over the tasks that adapt a map
        law, chess = products(made.root / "law"), products(made.root / "chess")
        both = {name: (law[name] + chess[name]) / 2 if name in chess else law[name] for name in law}
        same_state(merged, both, 1e-6)
    elif statistics == "diag":
        same_state(merged, batch_solution(made, ["law", "chess"], diag=True), 1e-6)
    else:
        exact = products(grown(made, tmp_path / "full", "law", "chess").export(tmp_path / "exact").out)
        assert max(float((merged[n] - exact[n]).norm() / exact[n].norm()) for n in exact) < 0.5


# --- any history ------------------------------------------------------------------------------------------


def test_the_order_of_adding_does_not_matter(made: Tasks, tmp_path: Path) -> None:
    found = set()
    for number, names in enumerate(itertools.permutations(("law", "chess", "poems"))):
        found.add(exported(grown(made, tmp_path / f"s{number}", *names), tmp_path / f"o{number}"))
    assert len(found) == 1


@pytest.mark.parametrize("removed", ["law", "chess", "poems"])
def test_a_removed_task_was_never_there(made: Tasks, tmp_path: Path, removed: str) -> None:
    names = ["law", "chess", "poems"]
    rest = [name for name in names if name != removed]
    never = grown(made, tmp_path / "never", *rest)
    found = grown(made, tmp_path / "removed", *names)
    found.remove(removed)
    assert found.tasks == tuple(rest)
    assert exported(found, tmp_path / "a") == exported(never, tmp_path / "b")
    kept = sorted(path.name for path in (tmp_path / "removed/tasks").iterdir())
    assert [name.partition("-")[0] for name in kept] == sorted(rest)


@pytest.mark.parametrize("more", [("data",), ("samples", "batch_size"), ("base",)])
@pytest.mark.parametrize(("keep", "why"), [("full", "the state keeps the moments"), ("none", ".*--model")])
def test_how_a_removed_task_is_measured_is_not_said_without_its_model(
    made: Tasks, tmp_path: Path, keep: str, why: str, more: tuple[str, ...]
) -> None:
    found = grown(made, tmp_path / "state", "law", "poems", keep=keep)
    known = {"data": made.of("law")[2], "samples": 5, "batch_size": 5, "base": made.base}
    named = ", ".join(f"--{name.replace('_', '-')}" for name in more)
    with pytest.raises(submerge.RequestError, match=f"^{named}: {why}"):
        found.remove("law", **{name: known[name] for name in more})
    assert found.tasks == ("law", "poems")


def test_the_model_of_a_removed_task_is_looked_at_where_moments_are_kept(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law", "chess")
    _, model, data = made.of("law")
    with pytest.raises(submerge.RequestError, match="is another adapter than"):
        found.remove("law", model=made.of("chess")[1], data=data)
    assert found.tasks == ("law", "chess")
    found.remove("law", model=model, data=data)
    assert found.tasks == ("chess",)


def test_an_export_inside_of_the_state_stays(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law")
    before = exported(found, tmp_path / "state/merged")
    found.add(*made.of("chess"))
    assert (tmp_path / "state/merged" / WEIGHTS).read_bytes() == before


def test_a_task_that_is_removed_may_be_added_again(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law", "chess")
    before = exported(found, tmp_path / "a")
    found.remove("law")
    found.add(*made.of("law"))
    assert exported(found, tmp_path / "b") == before
    assert found.tasks == ("chess", "law")


def test_two_halves_are_all(made: Tasks, tmp_path: Path) -> None:
    one, other = grown(made, tmp_path / "one", "law"), grown(made, tmp_path / "two", "chess", "poems")
    joined = submerge.Continual.join(tmp_path / "one", tmp_path / "two", tmp_path / "joined")
    whole = exported(grown(made, tmp_path / "all", "law", "chess", "poems"), tmp_path / "a")
    assert exported(joined, tmp_path / "b") == whole
    assert (
        exported(submerge.Continual.join(tmp_path / "two", tmp_path / "one", tmp_path / "j"), tmp_path / "c")
        == whole
    )
    assert (one.tasks, other.tasks, joined.tasks) == (("law",), ("chess", "poems"), ("law", "chess", "poems"))


def test_earlier_tasks_count_less_in_the_order_of_adding(made: Tasks, tmp_path: Path) -> None:
    one = grown(made, tmp_path / "one", "law", "chess", forget=0.5)
    other = grown(made, tmp_path / "two", "chess", "law", forget=0.5)
    assert exported(one, tmp_path / "a") != exported(other, tmp_path / "b")
    assert exported(one, tmp_path / "c", forget=1.0) == exported(other, tmp_path / "d", forget=1.0)


# --- sums alone -------------------------------------------------------------------------------------------


def rescaled(adapter: Path | str, out: Path, factor: float = 3.0) -> str:
    """Return a copy of an adapter whose configuration has another alpha."""
    shutil.copytree(adapter, out)
    config = json.loads((out / "adapter_config.json").read_text())
    config["lora_alpha"] *= factor
    (out / "adapter_config.json").write_text(json.dumps(config))
    return str(out)


def test_a_task_of_an_earlier_version_is_known_by_its_weights(made: Tasks, tmp_path: Path) -> None:
    """Their records have the digest of the file alone."""
    found = grown(made, tmp_path / "state", "law", "poems", keep="none")
    name, model, data = made.of("law")
    path = tmp_path / "state" / "state.json"
    content = json.loads(path.read_text())
    content["tasks"][0]["adapter"] = file_digest(Path(model) / "adapter_model.safetensors")
    path.write_text(json.dumps(content))
    found = submerge.Continual(tmp_path / "state")
    found.remove(name, model=model, data=data)
    assert found.tasks == ("poems",)


def test_removal_from_a_sum_needs_the_data_again(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law", "poems", keep="none")
    with pytest.raises(submerge.RequestError, match="only their sum was"):
        found.remove("law")
    name, model, data = made.of("law")
    with pytest.raises(submerge.RequestError, match="is another adapter than"):
        found.remove(name, model=made.of("poems")[1], data=data)
    with pytest.raises(submerge.RequestError, match="or has another scale"):
        found.remove(name, model=rescaled(model, tmp_path / "law"), data=data)
    with pytest.raises(submerge.RequestError, match="the inputs are others than the 12"):
        found.remove(name, model=model, data=made.of("poems")[2])
    for other in ({"samples": 5}, {"batch_size": 5}):
        with pytest.raises(submerge.RequestError, match=r"the inputs are others than the 12 .* batch size"):
            found.remove(name, model=model, data=data, **other)
    assert found.tasks == ("law", "poems")
    found.remove(name, model=model, data=data)
    never = grown(made, tmp_path / "never", "poems", keep="none")
    same_state(products(found.export(tmp_path / "a").out), products(never.export(tmp_path / "b").out), 1e-6)
    found.remove("poems")  # of a single task nothing has to be subtracted
    assert found.tasks == ()
    assert found.status().bytes == 0


def test_sums_of_two_states_add(made: Tasks, tmp_path: Path) -> None:
    grown(made, tmp_path / "one", "law", keep="none")
    grown(made, tmp_path / "two", "poems", keep="none")
    grown(made, tmp_path / "none", keep="none")
    whole = exported(grown(made, tmp_path / "all", "law", "poems", keep="none"), tmp_path / "a")
    joined = submerge.Continual.join(tmp_path / "one", tmp_path / "two", tmp_path / "joined")
    assert exported(joined, tmp_path / "b") == whole
    again = submerge.Continual.join(tmp_path / "none", tmp_path / "joined", tmp_path / "again")
    assert exported(again, tmp_path / "c") == whole


def test_a_sum_is_of_tasks_that_adapt_the_same_maps(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "one", "law", keep="none")
    with pytest.raises(
        submerge.RequestError, match="the task adapts other linear maps than the tasks before"
    ):
        found.add(*made.of("chess"))
    assert found.tasks == ("law",)
    grown(made, tmp_path / "two", "chess", keep="none")
    with pytest.raises(submerge.RequestError, match="adapts other linear maps"):
        submerge.Continual.join(tmp_path / "one", tmp_path / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_are_in_the_sums(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law", keep="none")
    assert found.export(tmp_path / "a", scale=2.0).rank == 4
    with pytest.raises(
        submerge.RequestError, match=r"ridge cannot be changed: the state was begun with 0\.001"
    ):
        found.export(tmp_path / "b", ridge=0.1)
    assert not (tmp_path / "b").exists()


# --- what a state takes and tells -------------------------------------------------------------------------


def test_passes_in_little_room(made: Tasks, tmp_path: Path) -> None:
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    seen: list[tuple[int, int]] = []
    found.add(*made.of("law"), room=1, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == seen[-1][0] == seen[-1][1] > 1
    assert exported(found, tmp_path / "a") == exported(grown(made, tmp_path / "s", "law"), tmp_path / "b")


def test_inputs_in_memory_and_fewer_of_them(made: Tasks, tmp_path: Path) -> None:
    task, model, data = made.of("law")
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    found.add(task, model, texts, samples=5)
    found.add("again", model, data, samples=5)
    found.add("spaced", model, [texts[place] for place in (0, 2, 4, 7, 9)])
    assert len(texts) == 12
    assert found.record("law").samples == 5
    assert len({found.record(name).data for name in ("law", "again", "spaced")}) == 1


def test_samples_of_batches_are_inputs(made: Tasks, tmp_path: Path) -> None:
    model = made.of("law")[1]
    ids = torch.arange(5, 59).view(9, 6)
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    found.add("three", model, ({"input_ids": part} for part in ids.split(3)), samples=5)
    spaced = [{"input_ids": ids[rows]} for rows in ([0, 1], [3, 5], [7])]
    found.add("five", model, spaced)
    assert found.record("three").samples == 5
    assert found.record("three").data == found.record("five").data


@pytest.mark.parametrize("keep", ["full", "none"])
def test_moments_of_a_model_in_float32_are_kept_in_it(made: Tasks, tmp_path: Path, keep: str) -> None:
    t = quiet_transformers()
    shutil.copytree(made.base, tmp_path / "base")
    t.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32).save_pretrained(tmp_path / "base")
    found = submerge.Continual.begin(tmp_path / "state", str(tmp_path / "base"), keep=keep)
    names = ["law", "poems"]
    for name in names:
        found.add(*made.of(name))
    tensors = {
        name: one
        for file in (tmp_path / "state").rglob("*.safetensors")
        for name, one in load_file(file).items()
    }
    moments = {name: one for name, one in tensors.items() if name.endswith((".triangle", ".H"))}
    assert {one.dtype for one in moments.values()} == {torch.float32}
    assert any(name.endswith(".A") for name in tensors) is (keep == "full")
    same_state(products(found.export(tmp_path / "out").out), batch_solution(made, names), 1e-4)
    _, model, data = made.of("law")
    found.remove("law", model=model, data=data)
    same_state(products(found.export(tmp_path / "one").out), products(made.root / "poems"), 1e-4)


@pytest.mark.parametrize("keep", ["full", "none"])
def test_sums_in_float32_without_a_ridge_are_told(made: Tasks, tmp_path: Path, keep: str) -> None:
    """What the base's dtype is decides in what sums are; those of two texts have no full rank."""
    t = quiet_transformers()
    shutil.copytree(made.base, tmp_path / "base")
    t.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32).save_pretrained(tmp_path / "base")

    def warned(base: str, ridge: float) -> list[str]:
        """Return the warnings of an export, of a state that was begun with the ridge where it is summed."""
        state = tmp_path / f"{Path(base).parent.name} {ridge > 0}"
        begun = {"ridge": ridge} if keep == "none" else {}
        found = submerge.Continual.begin(state, base, keep=keep, **begun)
        found.add(*made.of("law"), samples=2)
        report = found.export(state.with_name(f"{state.name} out"), ridge=ridge)
        return [line for line in report.warnings if "ill-conditioned" in line]

    (line,) = warned(str(tmp_path / "base"), 0.0)
    assert "the sums of moments at model.layers" in line
    assert "give a --ridge of 1e-3" in line
    assert not warned(str(tmp_path / "base"), 1e-3)
    assert not warned(made.base, 0.0), "in float64 a sum without full rank is inverted on its range"


def moments_of(made: Tasks, name: str) -> dict[str, TriangleMoment]:
    return {
        path: TriangleMoment.of(x)
        for path, x in inputs_of(made, name).items()
        if path in factors(made.root / name)
    }


@pytest.mark.parametrize("keep", ["full", "none"])
def test_a_checkpoint_of_a_base_in_float64_is_exact(made: Tasks, tmp_path: Path, keep: str) -> None:
    """An adapter is in float32, and its scale here one that changes no bit."""
    state = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep)
    total: dict[str, torch.Tensor] = {}
    weighted: dict[str, torch.Tensor] = {}
    for name, rank in (("law", 4), ("poems", 2)):
        adapter = Path(rescaled(made.root / name, tmp_path / name, rank / 6))
        moments = {path: TriangleMoment.of(normal(rank + len(path), 40, 16)) for path in factors(adapter)}
        state.add(name, adapter, MeasuredTask({n: n for n in moments}, iter(moments.items()), 12, name))
        for path, (a, b) in factors(adapter).items():
            c = moments[path].times(torch.eye(16)) / 40
            c += RIDGE * c.trace() / 16 * torch.eye(16)
            total[path] = total.get(path, 0) + c
            weighted[path] = weighted.get(path, 0) + b @ a @ c
    report = state.export(tmp_path / "out", form="checkpoint", settings=ROOM)
    assert report.rank == 6
    base, found = (load_file(Path(f) / "model.safetensors") for f in (made.base, report.out))
    wanted = {path: torch.linalg.solve(total[path], weighted[path].T).T for path in total}
    same_state({path: found[f"{path}.weight"] - base[f"{path}.weight"] for path in wanted}, wanted, 1e-10)


@pytest.mark.parametrize("keep", ["full", "none"])
def test_moments_that_were_measured_elsewhere(made: Tasks, tmp_path: Path, keep: str) -> None:
    found = submerge.Continual.begin(tmp_path / "state", made.base, keep=keep)
    for name in ("law", "poems"):
        moments = moments_of(made, name)
        found.add(
            name, made.of(name)[1], MeasuredTask({n: n for n in moments}, iter(moments.items()), 12, name)
        )
    assert found.record("law").samples == 12
    same_state(products(found.export(tmp_path / "out").out), batch_solution(made, ["law", "poems"]), 1e-6)


def test_moments_that_do_not_fit_are_refused(made: Tasks, tmp_path: Path) -> None:
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    moments = moments_of(made, "law")
    names = {name: name for name in moments}
    first = next(iter(names))
    diag = BlockMoment.of(torch.eye(moments[first].width), block=1)
    wrong: list[tuple[dict[str, str], dict[str, Moment], str]] = [
        ({}, {}, "nothing was measured of"),
        (names, {first: moments[first]}, "there are no moments of"),
        (names, {**moments, first: diag}, "is a diag one of"),
        (names, {**moments, first: TriangleMoment.of(torch.eye(3))}, "is a full one of 3 inputs"),
        (names, {**moments, "other": moments[first]}, "there is a moment of other, which is no distinct"),
    ]
    for given, parts, what in wrong:
        with pytest.raises(submerge.RequestError, match=what):
            found.add("law", made.of("law")[1], MeasuredTask(given, iter(parts.items()), 12, "law"))
    assert found.tasks == ()


def test_status(made: Tasks, tmp_path: Path) -> None:
    found = grown(made, tmp_path / "state", "law", "chess")
    status = found.status(condition=True)
    files = (tmp_path / "state").rglob("*.safetensors")
    assert status.bytes == sum(path.stat().st_size for path in files)
    law, chess = (found.record(name).moment_bytes for name in ("law", "chess"))
    assert status.unlearning_bytes == min(law, chess)
    assert status.conditions is not None
    assert all(value >= 1 for value in status.conditions.values())
    text = str(status)
    for part in ("law", "chess", "full statistics", "removal is exact", "largest condition number"):
        assert part in text
    assert status.to_dict()["tasks"][0]["name"] == "law"
    assert "removal needs" in str(grown(made, tmp_path / "none", "law", keep="none").status())
    assert "no tasks" not in str(submerge.Continual.begin(tmp_path / "empty", made.base).status())


def test_too_few_inputs_are_told(made: Tasks, tmp_path: Path) -> None:
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    (warning,) = found.add(*made.of("law"), samples=1)
    assert "rows of inputs are few for the 16 inputs of model.layers.0" in warning
    assert "the condition number is" in warning


def test_adapters_in_16_bits_stay_so(made: Tasks, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    task, model, data = made.of("law")
    half = tmp_path / "half"
    half.mkdir()
    config = json.loads((Path(model) / "adapter_config.json").read_text())
    (half / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["r"] * 2}))
    tensors = load_file(Path(model) / WEIGHTS)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, half / WEIGHTS)
    found = submerge.Continual.begin(tmp_path / "state", made.base)
    found.add(task, str(half), data)
    (file,) = (tmp_path / "state/tasks").iterdir()
    assert {t.dtype for name, t in load_file(file).items() if name.startswith("maps.")} == {torch.bfloat16}


def test_a_state_stays_where_it_was_begun(
    made: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the process goes to another folder; and every place may be a `Path`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = submerge.Continual.begin("state", Path(made.base))
    monkeypatch.chdir(tmp_path / "there")
    _, model, data = made.of("law")
    found.add("law", Path(model), data, base=Path(made.base))
    found.export("out", base=Path(made.base))
    assert submerge.Continual(tmp_path / "here" / "state").tasks == found.tasks == ("law",)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_tasks_whose_names_differ_in_case_have_files_of_their_own(
    made: Tasks, tmp_path: Path, earlier: bool
) -> None:
    """Where they are of one content, and where the file of one has the name that earlier versions gave it."""
    _, model, data = made.of("law")
    states = []
    for name in ("law", "Law"):
        state = submerge.Continual.begin(tmp_path / name, made.base)
        state.add(name, model, data)
        states.append(tmp_path / name)
    if earlier:
        manifest = states[1] / "state.json"
        content = json.loads(manifest.read_text())
        record = content["tasks"][0]
        old = f"tasks/Law-{record['digest'][:16]}.safetensors"
        (states[1] / record["file"]).rename(states[1] / old)
        manifest.write_text(manifest.read_text().replace(record["file"], old))
    joined = submerge.Continual.join(*states, tmp_path / "both")
    assert len({joined.record(name).file.lower() for name in joined.tasks}) == 2
    before = products(joined.export(tmp_path / "out").out)
    joined.remove("Law")
    same_state(products(joined.export(tmp_path / "one").out), before, 1e-9)
