"""Recipes for mixtures of experts: what is read, and what is refused, with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from submerge.errors import RequestError
from submerge.recipe import MixtureRecipe, load_mixture, load_recipe, to_mergekit_moe

FULL = """\
base_model: org/base
gate_mode: cheap_embed
dtype: bf16
experts_per_token: 1
architecture: qwen
seed: 3
experts:
  - source_model: org/a@main
    positive_prompts: [code, "def f():"]
    negative_prompts: [poems]
    residual_scale: 0.5
  - source_model: {model: org/b, lora: org/adapter}
    positive_prompts: [poems]
    noise_scale: 0.01
shared_experts:
  - source_model: org/base
    positive_prompts: [all]
"""


def problems(text: str, **more: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        load_mixture(text, **more)
    return [str(problem) for problem in caught.value.problems]


def edited(**values: Any) -> str:
    """Return a recipe of two experts with other values; None takes a key out."""
    given = {
        "base_model": "base",
        "gate_mode": "random",
        "experts": "[{source_model: a}, {source_model: b}]",
        **values,
    }
    return "".join(f"{key}: {value}\n" for key, value in given.items() if value is not None)


def test_all_keys_are_read() -> None:
    recipe = load_mixture(FULL)
    assert (recipe.base, recipe.gate_mode, recipe.dtype) == ("org/base", "cheap_embed", "bfloat16")
    assert (recipe.experts_per_token, recipe.architecture, recipe.seed) == (1, "qwen", 3)
    first, second = recipe.experts
    assert (first.model, first.positive, first.negative) == ("org/a@main", ("code", "def f():"), ("poems",))
    assert (first.residual_scale, first.noise_scale, first.where) == (0.5, 0.0, "recipe:8")
    assert (second.model, second.noise_scale) == ("org/b+org/adapter", 0.01)
    assert [expert.model for expert in recipe.shared_experts] == ["org/base"]
    assert [entry.model for entry in recipe.models] == ["org/a@main", "org/b+org/adapter", "org/base"]
    assert recipe.gates_shared
    assert load_mixture(recipe.resolved()).resolved() == recipe.resolved()


def test_defaults_are_those_of_mergekit() -> None:
    config = pytest.importorskip("mergekit.moe.config").MoEMergeConfig.model_fields
    for name in ("gate_mode", "experts_per_token"):
        assert getattr(MixtureRecipe, name) == config[name].default
    recipe = load_mixture(edited(dtype=None))
    assert (recipe.dtype, recipe.seed, recipe.architecture, recipe.shared_experts) == (None, 0, None, ())


def test_keys_are_those_of_mergekit() -> None:
    config = pytest.importorskip("mergekit.moe.config")
    assert set(config.MoEMergeConfig.model_fields) < set(load_mixture(FULL).resolved()) | {"shared_experts"}
    written = load_mixture(FULL).resolved()["experts"]
    assert set(config.Expert.model_fields) == set().union(*written)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (edited(base_model=None), "the recipe names no base_model"),
        (edited(experts=None), "recipe:1: 'experts' is empty"),
        (edited(experts="{a: b}"), "recipe:3: 'experts' is a list, not a mapping"),
        (edited(experts="[a, b]"), "recipe:3: an expert is a mapping, not 'a'"),
        (edited(experts="[{source_model: a}]"), "recipe:3: there is one expert"),
        (edited(experts="[{source_model: a}, {model: b}]"), "recipe:3: this expert names no model"),
        (
            edited(experts="[{source_model: a}, {source_model: 3}]"),
            "a model is a folder or a Hub name, not 3",
        ),
        (edited(gate_mode="hiden"), "recipe:2: unknown gate_mode 'hiden' — did you mean 'hidden'?"),
        (edited(gate_mode="hidden"), "recipe:3: this expert has no positive_prompts"),
        (edited(experts_per_token=3), "recipe:4: experts_per_token is 3, and there are 2 experts"),
        (edited(experts_per_token=0), "recipe:4: experts_per_token is a positive whole number, not 0"),
        (edited(experts_per_token="true"), "experts_per_token is a positive whole number, not true"),
        (edited(dtype="int3"), "recipe:4: unknown dtype 'int3' — one of 'bfloat16', 'float16'"),
        (edited(architecture="[a]"), "recipe:4: an architecture is a name, not a list"),
        (edited(seed=-1), "seed is a whole number"),
        (edited(shared_experts="{}"), "recipe:4: 'shared_experts' is empty"),
        (edited(expert=1), "recipe:4: unknown key 'expert' — did you mean 'experts'?"),
        (edited(merge_method="ties"), "recipe:4: 'merge_method' belongs to a merge"),
        ("", "the recipe is empty"),
        ("- a\n", "a recipe is a mapping, not a list"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, expected: str) -> None:
    found = problems(f"{text}\n")
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("expert", "expected"),
    [
        ("positive_prompts: code", "positive_prompts is a list of texts, not 'code'"),
        ("positive_prompts: [1]", "a prompt is a text, not 1"),
        ("negative_prompts: [[a]]", "a prompt is a text, not a list"),
        ("residual_scale: half", "residual_scale is a number, not 'half'"),
        ("noise_scale: .inf", "noise_scale is a number, not inf"),
        (f"noise_scale: 1{'0' * 400}", "noise_scale is a number, not 1"),
        ("prompts: [a]", "unknown key 'prompts'"),
    ],
)
def test_what_is_wrong_with_an_expert(expert: str, expected: str) -> None:
    found = problems(edited(experts=f"[{{source_model: a, {expert}}}, {{source_model: b}}]"))
    assert [expected in line for line in found] == [True]


def test_prompts_must_differ() -> None:
    same = "[{source_model: a, positive_prompts: [x]}, {source_model: b, positive_prompts: [x]}]"
    (line,) = problems(edited(gate_mode="cheap_embed", experts=same))
    assert "all experts have the same prompts" in line
    assert load_mixture(edited(experts=same)).gate_mode == "random"


def test_shared_experts_all_have_prompts_or_none() -> None:
    shared = "[{source_model: a, positive_prompts: [x]}, {source_model: b}]"
    (line,) = problems(edited(shared_experts=shared))
    assert "some shared experts have positive_prompts" in line


def test_what_mergekit_ignores_is_a_warning() -> None:
    text = edited(name="mine", experts="[{source_model: a, weight: 1}, {source_model: b}]")
    assert len(problems(text)) == 2
    assert load_mixture(text, mergekit=True).warnings == (
        "recipe:3: unknown key 'weight'; it is ignored, as by mergekit",
        "recipe:4: unknown key 'name'; it is ignored, as by mergekit",
    )


def test_a_merge_says_where_mixtures_are_made(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(FULL)
    with pytest.raises(RequestError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        "recipe.yaml:7: this recipe is for a mixture of experts, and not for a merge — "
        "submerge moe RECIPE OUT makes one"
    )


def test_mergekit_reads_what_is_written_for_it() -> None:
    config = pytest.importorskip("mergekit.moe.config")
    text = to_mergekit_moe(load_mixture(FULL))
    assert text is not None
    read = config.MoEMergeConfig.model_validate(yaml.safe_load(text))
    assert not config.is_bad_config(read)
    assert str(read.experts[1].source_model.lora.path) == "org/adapter"
    assert "seed" not in text
    for unlike in (
        FULL.replace("architecture: qwen\n", ""),  # it would take DeepSeek's
        FULL.replace("  - source_model: org/base\n    positive_prompts: [all]", "  - source_model: org/base"),
    ):
        assert to_mergekit_moe(load_mixture(unlike)) is None
    assert to_mergekit_moe(load_mixture(edited())) is not None
    assert to_mergekit_moe(load_mixture(edited(gate_mode="uniform_random"))) is None
