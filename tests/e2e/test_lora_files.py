"""Merges of LoRA files of diffusers and kohya, by whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _cli import cli
from _models import ROOM

MODULE = "down_blocks.0.attn1.to_q"
KEYS = {
    "diffusers": (f"unet.{MODULE}.lora_A.weight", f"unet.{MODULE}.lora_B.weight", None),
    "old": (
        "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.down_blocks.0.attn1.processor.to_q_lora.up.weight",
        None,
    ),
    "kohya": tuple(
        f"lora_unet_{MODULE.replace('.', '_')}.{role}"
        for role in ("lora_down.weight", "lora_up.weight", "alpha")
    ),
}
ALPHA = 1.5


def write(folder: Path, form: str, seed: int, rank: int) -> tuple[Path, torch.Tensor]:
    """Write a LoRA file of one module, and return its path and its update."""
    draw = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 8, generator=draw), torch.randn(6, rank, generator=draw)
    key_a, key_b, key_alpha = KEYS[form]
    tensors = {key_a: down, key_b: up} | ({key_alpha: torch.tensor(ALPHA)} if key_alpha else {})
    path = folder / f"{form}{seed}.safetensors"
    save_file(tensors, path)
    return path, up @ down * (ALPHA / rank if key_alpha else 1)


def recipe(method: str, *models: Path, base: Path | None = None, **more: object) -> dict[str, object]:
    parameters = {"weight": 0.5}
    return {
        "merge_method": method,
        "models": [{"model": str(model), "parameters": parameters} for model in models],
        **({"base_model": str(base)} if base else {}),
        **more,
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file({f"{MODULE}.weight": torch.ones(6, 8)}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize("form", KEYS)
@pytest.mark.parametrize("method", ["linear", "cat"])
def test_files_of_one_form_give_a_file_of_that_form(method: str, form: str, tmp_path: Path) -> None:
    """Two LoRA files in, one out under the same keys: what it says is the sum of the updates."""
    (one, first), (two, second) = (write(tmp_path, form, seed, rank) for seed, rank in ((1, 2), (2, 3)))
    submerge.merge(recipe(method, one, two, output={"as": "adapter"}), tmp_path / "out", settings=ROOM)
    found = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    key_a, key_b, key_alpha = KEYS[form]
    assert set(found) == {key for key in KEYS[form] if key}
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    scale = float(found[key_alpha]) / found[key_a].shape[0] if key_alpha else 1
    update = scale * found[key_b] @ found[key_a]
    torch.testing.assert_close(update, 0.5 * first + 0.5 * second, atol=1e-5, rtol=1e-5)
    assert submerge.verify(tmp_path / "out").sound
    again = recipe("cat", tmp_path / "out", output={"as": "adapter"})  # it goes in as it came out
    submerge.merge(again, tmp_path / "again", settings=ROOM)


@pytest.mark.parametrize("forms", [("diffusers", "old"), ("kohya", "kohya"), ("kohya", "diffusers")])
def test_files_into_their_model(forms: tuple[str, str], base: Path, tmp_path: Path) -> None:
    (one, first), (two, second) = (write(tmp_path, form, seed, 2) for seed, form in enumerate(forms))
    submerge.merge(recipe("task_arithmetic", one, two, base=base), tmp_path / "out", settings=ROOM)
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{MODULE}.weight"]
    torch.testing.assert_close(found, 1 + 0.5 * first + 0.5 * second, atol=1e-5, rtol=1e-5)
    single = {"merge_method": "passthrough", "models": [{"model": f"{base}+{one}"}]}
    submerge.merge(single, tmp_path / "single", settings=ROOM)
    found = load_file(tmp_path / "single" / "model.safetensors")[f"{MODULE}.weight"]
    torch.testing.assert_close(found, 1 + first, atol=1e-5, rtol=1e-5)


def test_forms_are_matched_by_a_base_alone(base: Path, tmp_path: Path) -> None:
    one, two = write(tmp_path, "kohya", 1, 2)[0], write(tmp_path, "diffusers", 2, 2)[0]
    output = {"as": "adapter"}
    with pytest.raises(submerge.RequestError, match="add 'base_model"):
        submerge.merge(recipe("cat", one, two, output=output), tmp_path / "out", settings=ROOM)
    submerge.merge(recipe("cat", one, two, base=base, output=output), tmp_path / "out", settings=ROOM)
    assert set(load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")) == set(KEYS["kohya"])


def test_without_a_base_the_way_is_told(tmp_path: Path) -> None:
    one, two = write(tmp_path, "diffusers", 1, 2)[0], write(tmp_path, "diffusers", 2, 2)[0]
    with pytest.raises(submerge.RequestError, match=r"add output: \{as: adapter\}"):
        submerge.merge(recipe("linear", one, two), tmp_path / "out", settings=ROOM)


def test_parts_of_other_models_of_the_pipeline_are_named(base: Path, tmp_path: Path) -> None:
    one, update = write(tmp_path, "kohya", 1, 2)
    more = {f"lora_te_x_fc1.{role}.weight": torch.ones(2, 2) for role in ("lora_down", "lora_up")}
    save_file(load_file(one) | more, one)
    report = submerge.merge(recipe("task_arithmetic", one, base=base), tmp_path / "out", settings=ROOM)
    assert any("1 parameters of lora_te are not of this model" in warning for warning in report.warnings)
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{MODULE}.weight"]
    torch.testing.assert_close(found, 1 + 0.5 * update, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_part_that_the_model_lacks_hinders_all_of_its_kind(form: str, tmp_path: Path) -> None:
    """One module too many is no reason to leave out the others, while a text encoder's part fits."""
    modules = [f"unet.blocks.{i}.to_q" for i in range(3)] + ["text_encoder.layers.0.fc1"]
    base = {f"{module}.weight": torch.ones(6, 8) for module in modules}
    save_file(base, tmp_path / "base.safetensors")
    lora = {}
    for module in [*modules, "unet.blocks.9.to_q"]:
        key = module
        if form == "kohya":
            key = module.replace(".", "_").replace("unet_", "lora_unet_").replace("text_encoder_", "lora_te_")
        lora[f"{key}.lora_down.weight"], lora[f"{key}.lora_up.weight"] = torch.ones(2, 8), torch.ones(6, 2)
    save_file(lora, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(submerge.RequestError, match=r"blocks[._]9[._]to_q") as caught:
        submerge.plan(
            recipe(
                "linear", tmp_path / "pytorch_lora_weights.safetensors", base=tmp_path / "base.safetensors"
            ),
            settings=ROOM,
        )
    assert "blocks.1" not in str(caught.value)


def test_state_dicts_of_adapters_are_refused(tmp_path: Path) -> None:
    states = [load_file(write(tmp_path, "kohya", seed, 2)[0]) for seed in (1, 2)]
    with pytest.raises(submerge.RequestError, match="must not be merged one by one"):
        submerge.merge_state_dicts(states, method="linear", weight=1.0)
    peft = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 2),
        "base_model.model.q.lora_B.weight": torch.ones(2, 2),
    }
    with pytest.raises(submerge.RequestError, match="factors of LoRA"):
        submerge.merge_state_dicts([peft, peft], method="linear", weight=1.0)


def test_the_plan_names_the_file(tmp_path: Path) -> None:
    one, two = write(tmp_path, "diffusers", 1, 2)[0], write(tmp_path, "diffusers", 2, 2)[0]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe("cat", one, two, output={"as": "adapter"})))
    found = cli("plan", path)
    assert "writes   pytorch_lora_weights.safetensors" in found.out
    assert "in the form of diffusers" in found.out
