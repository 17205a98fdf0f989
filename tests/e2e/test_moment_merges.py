"""Merges by second moments of the models' inputs: in one go, by a folder of moments, of all kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import submerge
from _calibrated import Calibrated, make_calibrated
from _models import ROOM, quiet_transformers
from calibrate.helpers_plain import factors
from submerge.errors import RequestError
from submerge.store import MomentFile, write_moments

pytest.importorskip("transformers")
pytest.importorskip("peft")
NAMES = ("law", "chess")
KINDS = ("full", "diag")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return make_calibrated(tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def merged(made: Calibrated) -> Path:
    """The merge of both adapters by `many`, with its folder of moments beside it."""
    return submerge.merge(made.recipe("many"), made.root / "merged", settings=ROOM).out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def tuned_inputs(made: Calibrated, name: str) -> dict[str, torch.Tensor]:
    """Return the rows of each linear map's inputs in the base with one adapter, from plain hooks."""
    t = quiet_transformers()
    model = t.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    with torch.no_grad():
        for module, (a, b) in factors(made.root / name).items():
            model.get_submodule(module).weight += (b @ a).float()
    rows: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, path=path: rows.setdefault(path, []).append(args[0][0])
            )
    tokenizer = t.AutoTokenizer.from_pretrained(made.base)
    for line in (made.root / f"{name}.jsonl").read_text().splitlines():
        with torch.no_grad():
            model(
                **{
                    k: v
                    for k, v in tokenizer(json.loads(line)["text"], return_tensors="pt").items()
                    if k != "token_type_ids"
                }
            )
    return {path: torch.cat(parts).double() for path, parts in rows.items()}


def wanted(made: Calibrated, ridge: float, offdiag: float = 1.0) -> dict[str, torch.Tensor]:
    """Return W + (Σ Δ_t C_t) (Σ C_t)⁻¹ of each linear map that an adapter changes, in float64."""
    updates = {name: factors(made.root / name) for name in NAMES}
    inputs = {name: tuned_inputs(made, name) for name in NAMES}
    found = {}
    for module in {module for own in updates.values() for module in own}:
        weight = made.state[f"{module}.weight"].double()
        sums, phi = torch.zeros_like(weight), torch.zeros(weight.shape[1], weight.shape[1]).double()
        for name in NAMES:
            x = inputs[name][module]
            c = x.T @ x / len(x)
            c = offdiag * c + (1 - offdiag) * c.diag().diag()
            c += ridge * c.trace() / len(c) * torch.eye(len(c))
            phi += c
            if module in updates[name]:
                a, b = updates[name][module]
                sums += b @ a @ c
        found[f"{module}.weight"] = weight + torch.linalg.solve(phi, sums.T).T
    return found


def test_a_merge_is_the_least_squares_solution_over_the_tuned_models_inputs(
    made: Calibrated, merged: Path
) -> None:
    found = weights(merged)
    for name, weight in wanted(made, 1e-3).items():
        update = (weight - made.state[name]).norm()
        assert (found[name] - weight).norm() < 2e-3 * update, name
    assert submerge.verify(merged).sound


def test_regmean_shrinks_what_is_beside_the_diagonal(made: Calibrated, tmp_path: Path) -> None:
    found = weights(submerge.merge(made.recipe("regmean"), tmp_path / "out", settings=ROOM).out)
    for name, weight in wanted(made, 0.0, 0.9).items():
        update = (weight - made.state[name]).norm()
        assert (found[name] - weight).norm() < 2e-3 * update, name


def by_moments(made: Calibrated, method: str = "many", **more: Any) -> dict[str, Any]:
    return made.recipe(method, data=False, moments=str(made.root / "merged.moments"), **more)


def test_a_merge_by_its_folder_of_moments_gives_the_same_bytes(
    made: Calibrated, merged: Path, tmp_path: Path
) -> None:
    again = submerge.merge(by_moments(made), tmp_path / "again", settings=ROOM).out
    assert (again / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    one, two = (json.loads((folder / "submerge.json").read_text()) for folder in (merged, again))
    assert one["moments"] == two["moments"]
    assert set(one["moments"]) == {"law.safetensors", "chess.safetensors"}
    assert "moments" not in one["recipe"]


def test_an_adapter_comes_out_with_the_sum_of_the_ranks(
    made: Calibrated, merged: Path, tmp_path: Path
) -> None:
    exact = submerge.merge(by_moments(made, output={"as": "adapter"}), tmp_path / "exact", settings=ROOM).out
    found = weights(merged)
    for module, (a, b) in factors(exact).items():
        update = found[f"{module}.weight"].double() - made.state[f"{module}.weight"].double()
        assert (b @ a - update).norm() < 1e-4 * update.norm().clamp(min=1e-3), module
        ranks = [len(f[module][0]) for name in NAMES if module in (f := factors(made.root / name))]
        assert int(a.any(1).sum()) <= sum(ranks)  # the rest fills up to one rank of all modules
    small = submerge.merge(
        by_moments(made, output={"as": "adapter", "rank": 2}), tmp_path / "small", settings=ROOM
    ).out
    assert all(len(a) <= 2 for a, _ in factors(small).values())


def test_moments_are_collected_for_an_adapter_too(made: Calibrated, merged: Path, tmp_path: Path) -> None:
    recipe = made.recipe("many", output={"as": "adapter"})
    found = factors(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out)
    values = weights(merged)
    for module, (a, b) in found.items():
        update = values[f"{module}.weight"].double() - made.state[f"{module}.weight"].double()
        assert (b @ a - update).norm() < 1e-4 * update.norm().clamp(min=1e-3), module


@pytest.mark.filterwarnings("ignore:.*their ends are cut off")
def test_an_interrupted_run_takes_up_its_moments(
    made: Calibrated, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[Any] = []

    def counted(*args: Any, **more: Any) -> Any:
        collected.append(args[2])
        return original(*args, **more)

    original = submerge.calibrate.task_moments
    monkeypatch.setattr("submerge.calibrate.task_moments", counted)
    recipe = made.recipe("many")
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert len(collected) == 2
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert len(collected) == 2
    recipe["parameters"] = {"max_length": 3}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert len(collected) == 4
    law = tmp_path / "law"
    shutil.copytree(recipe["models"][0]["model"], law)
    recipe["models"][0]["model"] = str(law)
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert len(collected) == 4
    config = json.loads((law / "adapter_config.json").read_text())
    (law / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": not config["use_rslora"]}))
    submerge.merge(recipe, tmp_path / "out", settings=ROOM, resume=True, overwrite=True)
    assert len(collected) == 5, "another scale, other inputs of layers"


def test_a_run_that_stops_between_two_models_goes_on_with_the_second(
    made: Calibrated, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, collected = submerge.calibrate.task_moments, []

    def stopping(*args: Any, **more: Any) -> Any:
        collected.append(args[2])
        if len(collected) == 2:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr("submerge.calibrate.task_moments", stopping)
    with pytest.raises(KeyboardInterrupt):
        submerge.merge(made.recipe("many"), tmp_path / "out", settings=ROOM)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["law.safetensors"]
    out = submerge.merge(made.recipe("many"), tmp_path / "out", settings=ROOM, resume=True).out
    assert [Path(data).name for data in collected] == ["law.jsonl", "chess.jsonl", "chess.jsonl"]
    assert (out / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_a_file_of_others_is_not_replaced(made: Calibrated, tmp_path: Path) -> None:
    (tmp_path / "out.moments").mkdir()
    (tmp_path / "out.moments" / "chess.safetensors").write_text("mine")
    with pytest.raises(RequestError, match="is no file of second moments"):
        submerge.merge(made.recipe("many"), tmp_path / "out", settings=ROOM)
    assert {path.name for path in tmp_path.rglob("*")} == {"out.moments", "chess.safetensors"}


@pytest.mark.filterwarnings("ignore:.*their ends are cut off")
@pytest.mark.parametrize("form", ["checkpoint", "adapter"])
def test_sums_in_float32_without_a_ridge_are_told(made: Calibrated, tmp_path: Path, form: str) -> None:
    """Of 24 tokens, which have fewer dimensions than a map has inputs: no sum has full rank."""

    def warned(method: str, **parameters: Any) -> list[str]:
        moments = tmp_path / "first.moments"
        given = {"moments": str(moments)} if moments.exists() else {}
        parameters |= {} if given else {"max_length": 3}
        recipe = made.recipe(method, data=not given, parameters=parameters, output={"as": form}, **given)
        out = tmp_path / ("out" if given else "first")
        report = submerge.merge(recipe, out, settings=ROOM, overwrite=True)
        return [line for line in report.warnings if "ill-conditioned" in line]

    (line,) = warned("many", ridge=0.0)
    assert line.startswith("model.layers.")
    assert "set ridge to 1e-3" in line
    assert not warned("many")
    assert not warned("regmean"), "what is beside the diagonal is shrunk"
    assert warned("regmean", offdiag=1.0) == [line]


def test_moments_of_other_models_are_refused(made: Calibrated, merged: Path, tmp_path: Path) -> None:
    """Another adapter, another scale and another base, all of the same widths."""
    recipe = by_moments(made)
    law, base = tmp_path / "law", tmp_path / "base"
    shutil.copytree(made.root / "law", law)
    shutil.copytree(made.base, base)
    recipe["models"][0]["model"], recipe["base_model"] = str(law), str(base)
    plain = submerge.plan(recipe, ROOM)
    assert not [line for line in plain.warnings if "was not checked" in line]

    config = json.loads((law / "adapter_config.json").read_text())
    (law / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    with pytest.raises(RequestError, match="were collected when it scaled otherwise: now it scales") as scale:
        submerge.plan(recipe, ROOM)
    assert [problem.where for problem in scale.value.problems] == ["models[0]"]
    (law / "adapter_config.json").write_text(json.dumps(config))

    values = load_file(law / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in values.items()}, law / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"law\.safetensors were collected with another adapter"):
        submerge.plan(recipe, ROOM)
    recipe["models"][0]["model"] = str(made.root / "law")

    values = load_file(base / "model.safetensors")
    save_file({n: 2 * t for n, t in values.items()}, base / "model.safetensors", {"format": "pt"})
    for form in ("checkpoint", "adapter"):
        with pytest.raises(RequestError, match="were collected on another base") as other:
            submerge.plan({**recipe, "output": {"as": form}}, ROOM)
        assert len(other.value.problems) == 2


def test_moments_of_an_earlier_version_are_taken_with_a_warning(
    made: Calibrated, merged: Path, tmp_path: Path
) -> None:
    moments = tmp_path / "moments"
    moments.mkdir()
    for name in NAMES:
        file = MomentFile.open(made.root / "merged.moments" / f"{name}.safetensors")
        source = {key: value for key, value in file.source.items() if not key.endswith("_digest")}
        kept = {layer: file.of(layer) for layer in file.inputs}
        write_moments(moments / f"{name}.safetensors", kept, source, file.kinds)
    recipe = by_moments(made) | {"moments": str(moments)}
    (line,) = [line for line in submerge.plan(recipe, ROOM).warnings if "was not checked" in line]
    assert "law.safetensors, chess.safetensors: whether these moments are of this base and these" in line


def test_memory_for_moments_is_planned(made: Calibrated) -> None:
    plans = {
        kind: submerge.plan(made.recipe("many", parameters={"statistics": kind}), ROOM) for kind in KINDS
    }
    assert plans["full"].budget.data_passes > plans["diag"].budget.data_passes > 0
    assert "collected before the merge, from data of 2 models" in repr(plans["full"])


def test_full_fine_tunes_have_moments_of_their_own(made: Calibrated, tmp_path: Path) -> None:
    """A fine-tune is what its adapter makes of the base: the same merge comes out."""
    t = quiet_transformers()
    for name in NAMES:
        model = t.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
        with torch.no_grad():
            for module, (a, b) in factors(made.root / name).items():
                model.get_submodule(module).weight += (b @ a).float()
        model.save_pretrained(tmp_path / name)
        t.AutoTokenizer.from_pretrained(made.base).save_pretrained(tmp_path / name)
    recipe = made.recipe("many")
    for name, entry in zip(NAMES, recipe["models"], strict=True):
        entry["model"] = str(tmp_path / name)
    found = weights(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out)
    for name, weight in wanted(made, 1e-3).items():
        update = (weight - made.state[name]).norm()
        assert (found[name] - weight).norm() < 2e-3 * update, name


@pytest.mark.parametrize("statistics", ["block", "diag"])
def test_cheaper_statistics(made: Calibrated, statistics: str, tmp_path: Path) -> None:
    recipe = made.recipe("many", parameters={"statistics": statistics})
    assert submerge.verify(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out).sound


def test_identity_is_a_weighted_mean_without_data(made: Calibrated, tmp_path: Path) -> None:
    recipe = made.recipe("many", data=False, parameters={"statistics": "identity", "scale": 2.0})
    recipe["models"][0]["parameters"] = {"weight": 3.0}
    found = weights(submerge.merge(recipe, tmp_path / "out", settings=ROOM).out)
    for name, tensor in made.state.items():
        update = torch.zeros_like(tensor, dtype=torch.float64)
        for model, weight in zip(NAMES, (0.75, 0.25), strict=True):
            module = name.removesuffix(".weight")
            if module in (own := factors(made.root / model)):
                a, b = own[module]
                update += 2.0 * weight * (b @ a)
        assert (found[name].double() - tensor.double() - update).abs().max() < 1e-5, name


def test_what_does_not_fit_is_refused(made: Calibrated, merged: Path, tmp_path: Path) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        (made.recipe("many", data=False), "has no data to collect moments from"),
        (
            made.recipe("many", parameters={"statistics": "identity"}),
            "statistics: identity looks at no inputs",
        ),
        (
            made.recipe("many", moments=str(made.root / "merged.moments")),
            "'data' is given, and moments are given",
        ),
        (made.recipe("many", data=False, moments="nowhere"), "there is no such file of moments"),
        (made.recipe("ties", data=False, moments=str(made.root)), "ties has no use for moments"),
        (made.recipe("many", data=False, moments=str(made.root)), "there is no such file of moments"),
        (
            by_moments(made, parameters={"statistics": "diag"}),
            "the moments are full, and the recipe's statistics are diag",
        ),
        (made.recipe("many", parameters={"statistics": "diag", "energy": 0.9}), "have no eigenpairs"),
    ]
    for recipe, message in refusals:
        with pytest.raises(RequestError, match=message):
            submerge.plan(recipe, ROOM)
    damaged = tmp_path / "moments"
    damaged.mkdir()
    for name in NAMES:
        (damaged / f"{name}.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(RequestError, match="is no file of second moments"):
        submerge.plan(made.recipe("many", data=False, moments=str(damaged)), ROOM)
