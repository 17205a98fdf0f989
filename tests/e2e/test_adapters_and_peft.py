"""Merges of adapters beside PEFT's own: of files, under names of all versions, and in a live model."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import submerge
from _adapters import ADAPTER, CLOSE, Tuned, far, make_tuned, peft_model, same_state
from _models import ROOM, quiet_transformers, read, write
from store.helpers_adapter import MODELS, stored

# --- PEFT's own merges of adapters ----------------------------------------------------------------


def weighted(made: Tuned, combination: str, weights: list[float], **more: Any) -> dict[str, torch.Tensor]:
    """Return the state after PEFT's add_weighted_adapter is merged into the base."""
    import peft

    model = peft_model(made.kind, made.state, 0, r=1, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, folder in enumerate(made.adapters):
            model.load_adapter(str(folder), adapter_name=f"a{i}")
        names = [f"a{i}" for i in range(len(made.adapters))]
        model.add_weighted_adapter(names, weights, "sum", combination_type=combination, **more)
        assert isinstance(model, peft.PeftModel)
        merged = model.merge_and_unload(adapter_names=["sum"])
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one configuration, which is what PEFT merges exactly."""
    return make_tuned(tmp_path_factory.mktemp("plain"), "llama", PLAIN, PLAIN)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.2]])
def test_cat_is_pefts(plain: Tuned, weights: list[float], tmp_path: Path) -> None:
    recipe = plain.recipe(output=ADAPTER, base=False)
    for entry, weight in zip(recipe["models"], weights, strict=True):
        entry["parameters"] = {"weight": weight}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    same_state(plain.loaded(tmp_path / "out"), weighted(plain, "cat", weights), CLOSE)


@pytest.mark.parametrize("rank", [2, 8])
def test_svd_is_pefts(plain: Tuned, rank: int, tmp_path: Path) -> None:
    plain.merge(tmp_path / "out", output=ADAPTER | {"rank": rank}, base=False, own={"weight": 0.7})
    same_state(plain.loaded(tmp_path / "out"), weighted(plain, "svd", [0.7, 0.7], svd_rank=rank), CLOSE)


def test_pefts_linear_has_cross_terms(plain: Tuned, tmp_path: Path) -> None:
    """(Σ √w B)(Σ √w A) is Σ w B A and the products of one adapter's B with another's A."""
    plain.merge(tmp_path / "out", "task_arithmetic", output=ADAPTER, base=False, own={"weight": 0.5})
    ours, theirs = plain.loaded(tmp_path / "out"), weighted(plain, "linear", [0.5, 0.5])
    assert far(ours, theirs) > 0.1
    name = "model.layers.0.self_attn.q_proj"
    left, right = (
        [stored(folder)[f"base_model.model.{name}.lora_{side}.weight"] for folder in plain.adapters]
        for side in "BA"
    )
    cross = 0.5 * 2 * (left[0] @ right[1] + left[1] @ right[0])
    found = theirs[f"{name}.weight"] - ours[f"{name}.weight"]
    torch.testing.assert_close(found, cross, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_peft_applies_the_scale_of_rslora_twice(combination: str, tmp_path: Path) -> None:
    """PEFT puts each scale into the factors, and then gives the sum, of rank 8, the scale 8 / √8."""
    made = make_tuned(tmp_path, "llama", PLAIN | {"use_rslora": True}, PLAIN | {"use_rslora": True})
    made.merge(tmp_path / "out", output=ADAPTER, base=False, own={"weight": 0.5})
    more = {"svd_rank": 8} if combination == "svd" else {}
    ours, theirs = made.loaded(tmp_path / "out"), weighted(made, combination, [0.5, 0.5], **more)
    update = {n: (theirs[n] - made.state[n]) / math.sqrt(8) for n in theirs}
    same_state({n: made.state[n] + update[n] for n in update}, ours, CLOSE)


def test_scales_of_rslora_are_kept(two: Tuned, tmp_path: Path) -> None:
    """What comes out has no rsLoRA, for its scale alpha / √r is in the factors."""
    two.merge(tmp_path / "out", output=ADAPTER, base=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"], config["lora_alpha"]) == (False, 7, 7)
    total = {n: sum((m[n] - two.state[n] for m in two.merged), two.state[n]) for n in two.state}
    same_state(two.loaded(tmp_path / "out"), total, CLOSE)


# --- names ----------------------------------------------------------------------------------------

OLD, NEW = "base_model.model.language_model.model.", "base_model.model.model.language_model."


def test_prefixes_of_old_and_new_versions(two: Tuned, tmp_path: Path) -> None:
    """Adapters of one multimodal model, trained with two versions of Transformers."""
    folders = []
    for number, (folder, prefix) in enumerate(zip(two.adapters, (OLD, NEW), strict=True)):
        moved = {k.replace("base_model.model.model.", prefix): v for k, v in stored(folder).items()}
        place = tmp_path / f"a{number}"
        place.mkdir()
        save_file(moved, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        folders.append(place)
    two.merge(tmp_path / "plain", output=ADAPTER, base=False)
    two.merge(tmp_path / "moved", models=folders, output=ADAPTER, base=False)
    expected = stored(tmp_path / "plain")
    found = stored(tmp_path / "moved")
    assert {k.replace(OLD, "base_model.model.model."): v.shape for k, v in found.items()} == {
        k: v.shape for k, v in expected.items()
    }
    assert all(torch.equal(v, expected[k.replace(OLD, "base_model.model.model.")]) for k, v in found.items())
    base = {k.replace("model.", "model.language_model.", 1): v for k, v in two.state.items()}
    write(tmp_path / "base", base, {"model_type": "vlm"})
    two.merge(tmp_path / "folded", models=folders, base=str(tmp_path / "base"))
    two.merge(tmp_path / "expected")
    renamed = {
        k.replace("model.", "model.language_model.", 1): v for k, v in read(tmp_path / "expected").items()
    }
    same_state(read(tmp_path / "folded"), renamed, 0)


def test_an_adapter_keeps_its_own_names(tmp_path: Path) -> None:
    """Checkpoints of multimodal models keep names of old versions, which PEFT would not find in a model."""
    options = {"r": 2, "target_modules": ["q_proj", "linear_1"]}
    made = make_tuned(
        tmp_path, "llava", options | {"use_dora": True}, options | {"target_modules": ["q_proj"]}
    )
    model = MODELS["llava"](quiet_transformers())
    model.load_state_dict(made.state)
    model.save_pretrained(tmp_path / "old")
    assert any(name.startswith("language_model.model.") for name in read(tmp_path / "old"))
    model.load_state_dict(made.merged[1])
    model.save_pretrained(tmp_path / "full")
    total = {n: made.merged[0][n] + made.merged[1][n] - made.state[n] for n in made.state}
    for number, second in enumerate((made.adapters[1], tmp_path / "full")):
        out = tmp_path / f"{number}"
        base = str(tmp_path / "old")
        made.merge(out, models=[made.adapters[0], second], base=base, output=ADAPTER)
        same_state(made.loaded(out), total, CLOSE)
        assert submerge.verify(out).sound


# --- in a live model ------------------------------------------------------------------------------


def live(made: Tuned) -> Any:
    model = peft_model(made.kind, made.state, 0, r=1, target_modules=["k_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, folder in enumerate(made.adapters):
            model.load_adapter(str(folder), adapter_name=f"a{i}")
    model.set_adapter("a0")
    return model


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "options"),
    [("cat", {"weight": [0.7, 0.2]}), ("ssam", {}), ("tsv_m", {}), ("ties", {"density": 0.5, "weight": 1.0})],
)
def test_merge_adapters_is_the_merge_of_folders(
    method: str, options: dict[str, Any], two: Tuned, tmp_path: Path
) -> None:
    model = live(two)
    before = tensors(model)
    report = submerge.merge_adapters(model, ["a0", "a1"], method=method, rank=5, **options)
    after = tensors(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.active_adapters == ["a0"]
    assert model.peft_config["merged"].r == (4 if method == "ssam" else 5)
    assert not report.warnings
    recipe = two.recipe(method, base=False, output=ADAPTER | {"rank": 5})
    for i, entry in enumerate(recipe["models"]):
        entry["parameters"] = {k: v[i] if isinstance(v, list) else v for k, v in options.items()}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    new = {name: tensor for name, tensor in after.items() if ".merged." in name}
    expected = stored(tmp_path / "out")
    for name, tensor in new.items():
        assert torch.equal(tensor, expected[name.replace(".merged.", ".")]), name
    assert len(new) == len(expected)


@pytest.mark.parametrize(
    ("adapters", "options", "message"),
    [
        (["a0", "nix"], {}, "there is no adapter 'nix'"),
        (["a0"], {"name": "a1"}, "is there already"),
        (["a0"], {"method": "nix"}, "unknown method"),
        (["a0"], {"method": "slerp", "t": 0.5}, "slerp"),
        (["a0"], {"rank": 0}, "positive whole number"),
        (["a0"], {"energy": 2.0}, "a share in"),
        (["a0", "a1"], {"weight": [1.0]}, "1 values for 2 models"),
        (["a0"], {"nix": 1}, "nix"),
    ],
)
def test_errors_leave_the_model_alone(
    adapters: list[str], options: dict[str, Any], message: str, two: Tuned
) -> None:
    model = live(two)
    before = tensors(model)
    with pytest.raises(submerge.RequestError, match=message):
        submerge.merge_adapters(model, adapters, **options)
    after = tensors(model)
    assert list(model.peft_config) == ["default", "a0", "a1"]
    assert model.active_adapters == ["a0"]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_one_adapter_twice_has_both_weights(two: Tuned) -> None:
    model = live(two)
    submerge.merge_adapters(model, ["a0", "a0"], weight=[0.5, 0.25])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    found, own = layer.get_delta_weight("merged"), layer.get_delta_weight("a0")
    torch.testing.assert_close(found, 0.75 * own, rtol=0, atol=CLOSE)


def test_names_by_which_peft_drops_parts_of_adapters_are_refused(two: Tuned) -> None:
    """PEFT saves none of the tensors with a word that is another adapter's name (huggingface/peft#3584)."""
    model = live(two)
    model.load_adapter(str(two.adapters[0]), adapter_name="mlp")
    with pytest.raises(submerge.RequestError, match="an adapter is called 'mlp'"):
        submerge.merge_adapters(model, ["a0", "a1"])
    with pytest.raises(submerge.RequestError, match="an adapter is called 'weight'"):
        submerge.merge_adapters(live(two), ["a0", "a1"], name="weight")


def test_models_that_do_not_save_adapters_one_by_one_are_refused(two: Tuned) -> None:
    import peft

    model = MODELS["llama"](quiet_transformers())
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="x")
    with pytest.raises(submerge.RequestError, match=r"LlamaForCausalLM: is no peft\.PeftModel"):
        submerge.merge_adapters(model, ["x"])


def test_other_kinds_in_a_live_model_are_refused() -> None:
    """PEFT would refuse the LoRA that comes out of LoHa beside it: the message leads to folders."""
    import peft

    config = peft.LoHaConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(MODELS["llama"](quiet_transformers()), config, adapter_name="style")
    wanted = r"'style' is LOHA.* merge their folders with submerge\.merge"
    with pytest.raises(submerge.RequestError, match=wanted):
        submerge.merge_adapters(model, ["style"], method="cat", weight=[1.0], name="out")


def test_problems_are_told_by_the_names_of_adapters(tmp_path: Path) -> None:
    model = peft_model("llama", None, 0, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(
        submerge.RequestError, match=r"^adapter 'default': lm_head\.weight is no low-rank update"
    ):
        submerge.merge_adapters(model, ["default"])


def test_buffers_of_saved_modules_are_saved(tmp_path: Path) -> None:
    """PEFT looks for all tensors of a module that is saved: of a batch norm also the number of batches."""
    made = make_tuned(
        tmp_path, "batch-norm", {"r": 2, "target_modules": ["plane"], "modules_to_save": ["norm"]}
    )
    made.merge(tmp_path / "out", output=ADAPTER)
    assert stored(tmp_path / "out")["base_model.model.norm.num_batches_tracked"].dtype == torch.int64
    same_state(made.loaded(tmp_path / "out"), made.merged[0], CLOSE)
