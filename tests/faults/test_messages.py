"""Warnings and refusals that must say what is so, and whose hints lead somewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import submerge
from _cli import ROOM as ROOM_FLAG
from _cli import cli, standard_input
from _models import ROOM, quiet_transformers, write
from store.helpers_adapter import State, by_hand, make

Q = {"q.weight": torch.zeros(3, 4), "other.weight": torch.ones(4, 4)}


def run(tmp_path: Path, method: str, *models: object, **more: Any) -> tuple[State, tuple[str, ...]]:
    """Merge, and return the tensors that were written and the warnings."""
    parameters = {} if method in ("passthrough", "mass") else {"weight": 1}
    recipe = {
        "merge_method": method,
        "models": [{"model": str(model), "parameters": parameters} for model in models],
        **more,
    }
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM, overwrite=True)
    return load_file(next((tmp_path / "out").glob("*.safetensors"))), tuple(report.warnings)


def refusal(tmp_path: Path, method: str, *models: object, **more: Any) -> str:
    with pytest.raises(submerge.RequestError) as caught:
        run(tmp_path, method, *models, **more)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_base_that_is_not_read_is_no_model_left_out(tmp_path: Path) -> None:
    ids = {"position_ids": torch.arange(4)}
    base, model = write(tmp_path / "base", Q | ids, {}), write(tmp_path / "model", Q | ids, {})
    assert run(tmp_path, "passthrough", model, base_model=str(base))[1] == ()


def test_biases_that_the_base_has_not(tmp_path: Path) -> None:
    extra = {"q.lora_B.bias": torch.ones(3)}
    adapter = by_hand(tmp_path / "a", extra, lora_bias=True)
    base = write(tmp_path / "base", Q, {})
    text = refusal(tmp_path, "passthrough", f"{base}+{adapter}")
    assert "adds to biases (lora_bias, diff_b) that the base does not have: q.bias" in text
    assert "did you mean" not in text
    zeros = write(tmp_path / "zeros", Q | {"q.bias": torch.zeros(3)}, {})  # what the hint says
    found, _ = run(tmp_path, "passthrough", f"{zeros}+{adapter}")
    assert torch.equal(found["q.bias"], torch.full((3,), 2.0))


def test_heads_that_the_base_has_not(tmp_path: Path) -> None:
    quiet_transformers()
    options: dict[str, Any] = {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    made = make("bert", tmp_path / "a", **options)
    headless = {name: t for name, t in made.base.items() if not name.startswith("classifier")}
    base = write(tmp_path / "base", headless, {"model_type": "bert"})
    adapter = {"output": {"as": "adapter"}}
    text = refusal(tmp_path, "cat", made.folder, base_model=str(base), **adapter)
    assert "a head of its own, which the base has not: classifier.bias, classifier.weight" in text
    assert "num_labels=3" in text
    assert "merge_method: mass" in text
    assert "is it of this model" not in text
    assert "merge_method: mass" in refusal(tmp_path, "cat", made.folder, **adapter)
    headed = write(tmp_path / "headed", made.base, {"model_type": "bert"})
    assert "classifier.weight" in run(tmp_path, "cat", made.folder, base_model=str(headed))[0]
    other = make("bert", tmp_path / "b", seed=1, **options)
    run(tmp_path, "mass", made.folder, other.folder, base_model=str(base))


def test_a_base_of_another_machine(tmp_path: Path) -> None:
    adapter = by_hand(tmp_path / "a", base_model_name_or_path="/root/models/llama")
    text = refusal(tmp_path, "passthrough", adapter)
    assert f"{adapter}/adapter_config.json: names the base /root/models/llama" in text
    assert "add 'base_model: …'" in text
    base = write(tmp_path / "base", Q, {})
    assert run(tmp_path, "task_arithmetic", adapter, base_model=str(base))[1] == ()


def test_the_rule_for_shapes_names_what_the_base_keeps(tmp_path: Path) -> None:
    longer = Q | {"other.weight": torch.ones(5, 4)}
    base, fits = write(tmp_path / "base", Q, {}), write(tmp_path / "fits", Q, {})
    odd = write(tmp_path / "odd", longer | {"extra.weight": torch.ones(2)}, {})
    how = {"base_model": str(base), "rules": {"shape": "base"}}
    _, warnings = run(tmp_path, "task_arithmetic", fits, odd, **how)
    assert warnings == (
        f"{odd}: 1 of its tensors have no place in the output (extra.weight)",
        f"other.weight: taken from {base} as it is (rule shape: base, for {odd} has [5, 4] and not [4, 4])",
    )


@pytest.mark.parametrize("kind", ["whole", "factors"])
@pytest.mark.parametrize("rows", [6, 3])
def test_an_adapter_with_another_vocabulary(rows: int, kind: str, tmp_path: Path) -> None:
    table = "embed_tokens"
    new = {f"{table}.weight": torch.full((rows, 4), 3.0)}
    if kind == "factors":
        new = {
            f"{table}.lora_embedding_A": torch.ones(2, rows),
            f"{table}.lora_embedding_B": torch.ones(4, 2),
        }
    adapter = by_hand(tmp_path / "a", new)
    base = write(tmp_path / "base", Q | {f"{table}.weight": torch.zeros(5, 4)}, {})
    how: dict[str, Any] = {"base_model": str(base)}
    text = refusal(tmp_path, "task_arithmetic", adapter, **how)
    hint = {"whole": f"resize_token_embeddings({rows})", "factors": f"of {rows} rows that it was trained on"}
    assert hint[kind] in text
    assert "rules: {shape: base, vocabulary: by-position}" in text
    rules = {"shape": "base", "vocabulary": "by-position"}
    found, warnings = run(tmp_path, "task_arithmetic", adapter, **how, rules=rules)
    assert torch.equal(found[f"{table}.weight"], torch.zeros(5, 4))
    assert torch.equal(found["q.weight"], torch.full((3, 4), 4.0))
    assert any(f"{table}.weight: taken from {base} as it is" in warning for warning in warnings)
    resized = write(tmp_path / "resized", Q | {f"{table}.weight": torch.zeros(rows, 4)}, {})
    found, _ = run(tmp_path, "task_arithmetic", adapter, base_model=str(resized))
    assert torch.equal(found[f"{table}.weight"], torch.full((rows, 4), 3.0 if kind == "whole" else 4.0))


def test_an_adapter_that_fits_nowhere_is_refused_with_the_rule_too(tmp_path: Path) -> None:
    adapter = by_hand(tmp_path / "a")
    base = write(tmp_path / "base", {"q.weight": torch.zeros(7, 5)}, {})
    text = refusal(tmp_path, "task_arithmetic", adapter, base_model=str(base), rules={"shape": "base"})
    assert "update of the shape [3, 4], but the base has [7, 5]" in text


def test_weights_beside_an_adapter_are_named(tmp_path: Path) -> None:
    adapter = by_hand(tmp_path / "a")
    save_file({"v_head.weight": torch.ones(1, 4)}, adapter / "value_head.safetensors")
    base = write(tmp_path / "base", Q, {})
    wanted = (
        f"{adapter}: weights beside it are no part of an adapter, and are left out: value_head.safetensors",
    )
    assert run(tmp_path, "task_arithmetic", adapter, base_model=str(base))[1] == wanted
    assert run(tmp_path, "cat", adapter, output={"as": "adapter"})[1] == wanted


def test_a_recipe_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write(tmp_path / "base", Q, {})
    recipe = yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": str(base)}]})
    for arguments in (
        ("merge", "-o", tmp_path / "out", *ROOM_FLAG),
        ("plan",),
        ("explain", "-t", "q.weight"),
    ):
        monkeypatch.setattr("sys.stdin", standard_input(recipe))
        result = cli(arguments[0], "-", *arguments[1:])
        assert result.code == 0, result.err
    monkeypatch.setattr("sys.stdin", standard_input("merge_method: linear"))
    result = cli("plan", "-")
    assert result.code == 2
    assert "recipe:1: the recipe lists no models" in result.err


@pytest.mark.parametrize(
    ("one", "two", "differ"),
    [
        ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", True),
        ("/models/llama", "/models/qwen", True),
        ("meta-llama/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B-bnb-4bit", False),
        ("org/Llama", "/root/models/llama/", False),
        ("org/llama", "./base", False),
        ("org/llama", "/cache/models--org--llama/snapshots/0123abc", False),
        ("/data/llama", "/home/me/llama/", False),
        ("org/llama", None, False),
    ],
)
def test_adapters_of_different_models(one: str, two: str | None, differ: bool, tmp_path: Path) -> None:
    adapters = [
        by_hand(tmp_path / name, base_model_name_or_path=base, revision=name)
        for name, base in (("a", one), ("b", two))
    ]
    _, warnings = run(tmp_path, "cat", *adapters, output={"as": "adapter"})
    assert len(warnings) == differ
    if differ:
        assert f"a on {one}" in warnings[0]
        assert f"b on {two}" in warnings[0]
    assert json.loads((tmp_path / "out" / "submerge.json").read_text())["warnings"] == list(warnings)
