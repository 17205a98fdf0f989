"""Mixtures of experts: what is read and written, what is drawn at random, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from _mixtures import dense_folder
from _models import ROOM, contents, read
from submerge.engine import Settings, describe, moe, plan_mixture, verify
from submerge.errors import RequestError, WorkError
from submerge.store import Manifest

GATE = "model.layers.{}.block_sparse_moe.gate.weight"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PROMPTS = {"positive_prompts": ["a b"]}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a base and two models of its size."""
    for seed, name in enumerate(("base", "a", "b")):
        dense_folder(tmp_path / "models" / name, seed)
    return tmp_path / "models"


def recipe_of(models: Path, **more: Any) -> dict[str, Any]:
    experts = [{"source_model": str(models / name)} for name in "ab"]
    return {"base_model": str(models / "base"), "gate_mode": "random", "experts": experts, **more}


def problems(recipe: dict[str, Any]) -> list[str]:
    with pytest.raises(RequestError) as caught:
        plan_mixture(recipe, ROOM)
    return [str(problem) for problem in caught.value.problems]


def test_each_tensor_is_one_of_one_model(models: Path, tmp_path: Path) -> None:
    report = moe(recipe_of(models), tmp_path / "out", settings=ROOM)
    written = read(tmp_path / "out")
    base, *experts = (read(models / name) for name in ("base", "a", "b"))
    for name in base:
        if ".mlp." not in name:
            assert torch.equal(written.pop(name), base[name])
    for layer in range(2):
        for number, expert in enumerate(experts):
            for own, dense in PROJECTIONS.items():
                tensor = written.pop(EXPERT.format(layer, number, own))
                assert torch.equal(tensor, expert[f"model.layers.{layer}.mlp.{dense}.weight"])
        assert written.pop(GATE.format(layer)).shape == (2, 8)
    assert not written
    assert report.tensors == {"base": 15, "mixture": 14}
    assert verify(tmp_path / "out", load=False).problems == []


def test_nothing_is_read_twice_or_in_vain(models: Path, tmp_path: Path) -> None:
    plan = plan_mixture(recipe_of(models), ROOM)
    report = moe(plan, tmp_path / "out")
    assert report.bytes_read == plan.bytes_read == report.bytes_written - _header(tmp_path / "out")
    unread = {name for names in plan.unused.values() for name in names}
    assert all(".mlp." in name for name in plan.unused[0])
    assert "lm_head.weight" in unread


def _header(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size - sum(t.nbytes for t in read(folder).values())


def test_the_configuration_has_the_defaults_of_the_dense_model(models: Path, tmp_path: Path) -> None:
    moe(recipe_of(models, experts_per_token=1), tmp_path / "out", settings=ROOM)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((models / "base" / "config.json").read_text())
    assert config == given | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def test_types_are_those_of_the_base_or_of_the_recipe(models: Path, tmp_path: Path) -> None:
    base = dense_folder(tmp_path / "half", 0, dtype=torch.bfloat16)
    for out, dtype, expected in (("own", None, torch.bfloat16), ("asked", "fp16", torch.float16)):
        recipe = recipe_of(models, base_model=str(base), dtype=dtype)
        moe(recipe, tmp_path / out, settings=ROOM)
        assert {tensor.dtype for tensor in read(tmp_path / out).values()} == {expected}


def test_the_same_bytes_of_any_number_of_workers(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models)
    recipe["experts"][0]["noise_scale"] = 0.1
    moe(recipe, tmp_path / "one", settings=Settings(threads=1, max_memory=ROOM.max_memory))
    moe(recipe, tmp_path / "four", settings=Settings(threads=4, max_memory=ROOM.max_memory))
    one, four = contents(tmp_path / "one"), contents(tmp_path / "four")
    assert one["model.safetensors"] == four["model.safetensors"]


def test_random_gates_depend_on_the_seed_alone(models: Path, tmp_path: Path) -> None:
    made = {}
    for out, more in {"a": {}, "b": {"seed": 0}, "c": {"seed": 1}}.items():
        moe(recipe_of(models, **more), tmp_path / out, settings=ROOM)
        made[out] = read(tmp_path / out)
    assert torch.equal(made["a"][GATE.format(0)], made["b"][GATE.format(0)])
    assert not torch.equal(made["a"][GATE.format(0)], made["c"][GATE.format(0)])
    assert not torch.equal(made["a"][GATE.format(0)], made["a"][GATE.format(1)])


def test_how_gates_are_drawn(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense_folder(tmp_path / name, seed, width=1024, inner=4, layers=1)
    drawn = {}
    for mode in ("random", "uniform_random"):
        moe(recipe_of(tmp_path, gate_mode=mode), tmp_path / mode, settings=ROOM)
        drawn[mode] = read(tmp_path / mode)[GATE.format(0)]
    assert abs(drawn["random"].mean()) < 0.1
    assert abs(drawn["random"].std() - 1) < 0.1
    bound = 1024**-0.5  # torch's default for a linear map
    assert 0.99 * bound < drawn["uniform_random"].abs().max() <= bound


def test_noise_and_scale(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models)
    recipe["experts"][0] |= {"noise_scale": 0.5, "residual_scale": 3.0}
    moe(recipe, tmp_path / "out", settings=ROOM)
    written, own = read(tmp_path / "out"), read(models / "a")
    for key, dense in PROJECTIONS.items():
        scale = 3.0 if key == "w2" else 1.0
        noise = written[EXPERT.format(0, 0, key)] / scale - own[f"model.layers.0.mlp.{dense}.weight"]
        assert 0.35 < noise.std() < 0.65
        assert torch.equal(
            written[EXPERT.format(0, 1, key)], read(models / "b")[f"model.layers.0.mlp.{dense}.weight"]
        )


def test_a_plan_says_what_will_be(models: Path) -> None:
    recipe = recipe_of(models, experts_per_token=1)
    recipe["experts"].append({"source_model": str(models / "base")})
    plan = plan_mixture(recipe, ROOM)
    block, layer = 3 * 8 * 12, 4 * 8 * 8 + 2 * 8 + 3 * 8
    beside = 2 * layer + 2 * 10 * 8 + 8
    described = describe(plan)["mixture"]
    assert described["parameters"] == sum(t.numel for t in plan.tensors) == beside + 2 * 3 * block
    assert described["active_parameters"] == beside + 2 * block
    assert (described["architecture"], described["layers"]) == ("MixtralForCausalLM", 2)
    assert [model["role"] for model in describe(plan)["models"]] == ["base and expert", "expert", "expert"]
    assert "3, 1 of them for a token" in repr(plan)


def test_the_manifest_has_the_recipe(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models)
    moe(recipe, tmp_path / "out", settings=ROOM)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.recipe == recipe | {"experts_per_token": 2, "seed": 0}
    assert manifest.is_mixture
    assert [record.used for record in manifest.models] == [None, 6, 6]
    again = moe(dict(manifest.recipe), tmp_path / "again", settings=ROOM)
    assert contents(again.out)["model.safetensors"] == contents(tmp_path / "out")["model.safetensors"]


def test_an_interrupted_run_goes_on(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moe(recipe_of(models), tmp_path / "expected", settings=ROOM)

    def stop(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moe(recipe_of(models), tmp_path / "out", settings=ROOM, progress=stop)
    assert not (tmp_path / "out").exists()
    report = moe(recipe_of(models), tmp_path / "out", settings=ROOM, resume=True)
    assert report.resumed > 0
    assert (
        contents(tmp_path / "out")["model.safetensors"]
        == contents(tmp_path / "expected")["model.safetensors"]
    )


def test_a_failure_leaves_what_is_there(models: Path, tmp_path: Path) -> None:
    moe(recipe_of(models), tmp_path / "out", settings=ROOM)
    before = contents(tmp_path / "out")
    with pytest.raises(RequestError, match="the output exists and is not empty"):
        moe(recipe_of(models), tmp_path / "out", settings=ROOM)
    broken = read(models / "a") | {"model.layers.0.mlp.up_proj.weight": torch.full((12, 8), torch.nan)}
    save_file(broken, models / "a" / "model.safetensors")
    with pytest.raises(WorkError, match="NaN or Inf"):
        moe(recipe_of(models), tmp_path / "out", settings=ROOM, overwrite=True)
    assert contents(tmp_path / "out") == before
    with pytest.raises(RequestError, match="would lie in, or over, the input"):
        moe(recipe_of(models), models / "a", settings=ROOM, overwrite=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"inner": 16}, "shapes differ from {base}'s: model.layers.0.mlp.gate_proj.weight"),
        ({"layers": 3}, "it has 3 layers, and {base} has 2"),
        ({"without": "layers.1.mlp.up"}, "it lacks model.layers.1.mlp.up_proj.weight"),
        ({"model_type": "mistral"}, "the models are of several architectures"),
        ({"more": {"model.layers.0.mlp.up_proj.bias": (12,)}}, "experts have no place for"),
    ],
)
def test_experts_that_do_not_fit(
    options: dict[str, Any], expected: str, models: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(models)
    recipe["experts"][1]["source_model"] = str(dense_folder(tmp_path / "other", 3, **options))
    found = problems(recipe)
    assert any(expected.format(base=models / "base") in line for line in found), found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"without": "lm_head"}, "it lacks tensors that a mixture has from its base: lm_head.weight"),
        ({"without": "layers.1.self_attn.q"}, "model.layers.1.self_attn.q_proj.weight"),
        ({"more": {"score.weight": (2, 8)}}, "Mixtral has no place for score.weight"),
        ({"more": {"model.layers.0.self_attn.q_proj.bias": (8,)}}, "Mixtral has no place for"),
        ({"model_type": "gemma"}, "no mixture of experts is made of gemma models"),
    ],
)
def test_bases_that_do_not_fit(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense_folder(tmp_path / name, seed, **options)
    found = problems(recipe_of(tmp_path))
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("llama", {"architecture": "phi"}, "no architecture's name begins with 'phi'"),
        ("llama", {"architecture": "qwen3"}, "no mixture of experts is made of llama models"),
        ("llama", {"architecture": "mixtral", "shared": [{}]}, "leave 'shared_experts' out"),
        ("llama", {"architecture": "deepseek", "shared": [PROMPTS]}, "it has no gate for a shared expert"),
        ("llama", {"shared": [{}, {}]}, "Qwen MoE does not fit: it has 1 shared experts"),
        ("qwen2", {}, "Qwen MoE does not fit: it has 1 shared experts"),
    ],
)
def test_architectures_that_do_not_fit(
    kind: str, more: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        dense_folder(tmp_path / name, seed, model_type=kind)
    shared = [{"source_model": str(tmp_path / "a"), **own} for own in more.pop("shared", [])]
    found = problems(recipe_of(tmp_path, **more, **({"shared_experts": shared} if shared else {})))
    assert any(expected in line for line in found), found


def test_vocabularies(models: Path, tmp_path: Path) -> None:
    tokens = {chr(97 + i): i for i in range(10)}
    base = dense_folder(tmp_path / "base", 0, tokens=tokens)
    more = dense_folder(tmp_path / "more", 1, tokens=tokens | {"new": 10})
    other = dense_folder(tmp_path / "other", 2, tokens={chr(97 + i): 9 - i for i in range(10)})
    recipe = recipe_of(models, base_model=str(base))
    recipe["experts"][0]["source_model"] = str(more)
    (warning,) = plan_mixture(recipe, ROOM).warnings
    assert "as an expert it reads the base's tokens: 1 token missing" in warning
    recipe["experts"][1]["source_model"] = str(other)
    assert "it has another tokenizer than the base: 10 tokens with other ids" in problems(recipe)[0]


def test_an_expert_whose_tokenizer_cuts_otherwise(models: Path) -> None:
    """It has the same tokens, and was trained on others of them; nothing is said of the base's own."""
    for name, lower in (("base", False), ("a", False), ("b", True)):
        tokenizer = Tokenizer(WordLevel({"<unk>": 0, "the": 1, "The": 2}, "<unk>"))
        tokenizer.normalizer = normalizers.Lowercase() if lower else None
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(models / name / "tokenizer.json"))
    (warning,) = plan_mixture(recipe_of(models), ROOM).warnings
    assert warning.startswith(f"{models / 'b'}: its tokenizer cuts texts otherwise than that of")
    assert "'The quick brown fox'" in warning


def test_prompts_need_a_tokenizer(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models, gate_mode="cheap_embed")
    for number, expert in enumerate(recipe["experts"]):
        expert["positive_prompts"] = [f"prompt {number}"]
    with pytest.raises(RequestError, match="there is no tokenizer for the prompts"):
        moe(recipe, tmp_path / "out", settings=ROOM)
    assert not list(tmp_path.glob("out*"))
