"""MASS of models whose parameters are others than the files' tensors, or are read by other modules.

transformers packs the experts of most mixtures into one parameter, and gives some experts the tokens that
they take, in an order of its own. A named task's logits must be those of its own model, alone and in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM, quiet_transformers
from submerge.errors import RequestError
from submerge.methods import METHODS

SIZES = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
IDS = torch.arange(18).reshape(3, 6) * 7 % 45 + 3


def dbrx(t: Any) -> Any:
    attention = {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4}
    experts = {"ffn_hidden_size": 8, "moe_num_experts": 3, "moe_top_k": 2, "hidden_size": 16}
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "vocab_size": 48}
    return t.DbrxForCausalLM(t.DbrxConfig(**sizes, attn_config=attention, ffn_config=experts))


def llama4(t: Any) -> Any:
    own = {"intermediate_size_mlp": 24, "head_dim": 8, "interleave_moe_layer_step": 1, "no_rope_layers": [1]}
    config = t.Llama4TextConfig(**SIZES, **own, num_local_experts=3, num_experts_per_tok=1)
    return t.Llama4ForCausalLM(config)


def jetmoe(t: Any) -> Any:
    sizes = {name: size for name, size in SIZES.items() if name != "num_attention_heads"}
    return t.JetMoeForCausalLM(t.JetMoeConfig(**sizes, **EXPERTS, kv_channels=8))


def gpt_oss(t: Any) -> Any:
    config = t.GptOssConfig(**SIZES, **EXPERTS, head_dim=8, layer_types=["full_attention"])
    return t.GptOssForCausalLM(config)


def deepseek(t: Any) -> Any:
    sizes = SIZES | {"num_key_value_heads": 2, "moe_intermediate_size": 8, "n_routed_experts": 4}
    heads = {
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
    }
    groups = {"first_k_dense_replace": 0, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    return t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**sizes, **heads, **groups, n_shared_experts=1))


MODELS: dict[str, Callable[[Any], Any]] = {
    "mixtral": lambda t: t.MixtralForCausalLM(t.MixtralConfig(**SIZES, **EXPERTS)),
    "deepseek_v3": deepseek,
    "gpt_oss": gpt_oss,
    "dbrx": dbrx,
    "llama4": llama4,
    "jetmoe": jetmoe,
}


def moved(model: Any, seed: int, scale: float = 0.1) -> Any:
    draw = torch.Generator().manual_seed(seed)
    result = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * scale)
    return result.eval()


def written(model: Any, root: Path) -> tuple[dict[str, Any], list[Any]]:
    """Write a base and two fine-tunes; return a recipe that keeps all of their updates."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)  # some are left as they come
    tuned = [moved(model, seed) for seed in (1, 2)]
    for name, one in zip(("base", "a", "b"), (model, *tuned), strict=True):
        one.save_pretrained(root / name)
    models = [{"model": str(root / name), "name": name} for name in ("a", "b")]
    recipe = {"merge_method": "mass", "base_model": str(root / "base"), "models": models}
    return recipe | {"parameters": {"rank": 64}}, tuned


@pytest.mark.parametrize("kind", MODELS)
def test_a_named_task_is_its_own_model(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe, tuned = written(MODELS[kind](quiet_transformers()), tmp_path)
    report = submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    assert not report.warnings
    model = submerge.load(tmp_path / "out")
    with torch.no_grad():
        own = [one(input_ids=IDS).logits for one in tuned]
        for name, wanted in zip("ab", own, strict=True):
            torch.testing.assert_close(model(input_ids=IDS, task=name).logits, wanted, rtol=1e-4, atol=1e-5)
        mixed = model(input_ids=IDS, task=["a", "b", "a"]).logits
        wanted = torch.stack([own[0][0], own[1][1], own[0][2]])
        torch.testing.assert_close(mixed, wanted, rtol=1e-4, atol=1e-5)
        assert set(model(input_ids=IDS).tasks) <= {"a", "b"}
        options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        generated = model.generate(input_ids=IDS, task=["a", "b", "a"], **options)
        for row, one in enumerate((tuned[0], tuned[1], tuned[0])):
            alone = one.generate(input_ids=IDS[row : row + 1], **options)
            assert generated[row].tolist() == alone[0].tolist()
    assert not (own[0] - own[1]).abs().max() < 1e-2


@pytest.fixture
def mixtral(tmp_path: Path) -> dict[str, Any]:
    return written(MODELS["mixtral"](quiet_transformers()), tmp_path)[0]


def test_the_checkpoint_is_the_merge_where_the_first_pass_is(mixtral: dict[str, Any], tmp_path: Path) -> None:
    """With `first_pass: merged` the merge stays resident, and the base's packed values lie beside it."""
    recipe = mixtral | {"parameters": {"rank": 64, "first_pass": "merged"}}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    model, t = submerge.load(tmp_path / "out"), quiet_transformers()
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    own = t.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    torch.testing.assert_close(model.state_dict()[name], plain[name])
    with torch.no_grad():
        wanted = own(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS, task="b").logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_gate_that_does_not_assemble_is_refused_before_the_merge(mixtral: dict[str, Any]) -> None:
    mass = METHODS["mass"]
    assert mass.gate is not None
    method = replace(mass, name="gated", gate=replace(mass.gate, assembles=False))
    recipe = submerge.load_recipe(mixtral | {"merge_method": "gated"}, methods={"gated": method})
    with pytest.raises(
        RequestError, match=r"other parameters .*experts\.0\.w1.* choose a method without a gate"
    ):
        submerge.plan(recipe, ROOM)


def test_tensors_without_a_parameter_are_named_before_the_merge(
    mixtral: dict[str, Any], tmp_path: Path
) -> None:
    """Layers that predict further tokens are in files, and not in transformers' classes."""
    extra = "model.layers.1.eh_proj.weight"
    for number, name in enumerate(("base", "a", "b")):
        file = tmp_path / name / "model.safetensors"
        save_file(load_file(file) | {extra: torch.eye(16) * (1 + number)}, file, metadata={"format": "pt"})
    plan = submerge.plan(mixtral, ROOM)
    (warning,) = [text for text in plan.warnings if extra in text]
    assert "the gate leaves them out" in warning
    submerge.merge(plan, tmp_path / "out")
    model = submerge.load(tmp_path / "out")
    own = quiet_transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        wanted = own(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS, task="a").logits, wanted, rtol=1e-4, atol=1e-5)


def test_adapters_on_packed_experts(tmp_path: Path) -> None:
    """PEFT's `target_parameters`: each expert of a parameter has a product of its own."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    t = quiet_transformers()
    written(MODELS["gpt_oss"](t), tmp_path)
    config = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    tuned = []
    for seed, name in enumerate(("a", "b")):
        base = t.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        adapted = peft.get_peft_model(base, peft.LoraConfig(**config, task_type="CAUSAL_LM"))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for own, parameter in adapted.named_parameters():
                if "lora_" in own:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        adapted.save_pretrained(tmp_path / f"lora-{name}")
        tuned.append(adapted.eval())
    models = [{"model": str(tmp_path / f"lora-{name}"), "name": name} for name in ("a", "b")]
    recipe = {"merge_method": "mass", "base_model": str(tmp_path / "base"), "models": models}
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    model = submerge.load(tmp_path / "out")
    with torch.no_grad():
        for name, one in zip("ab", tuned, strict=True):
            wanted = one(input_ids=IDS).logits
            torch.testing.assert_close(model(input_ids=IDS, task=name).logits, wanted, rtol=1e-4, atol=1e-5)


def test_relative_positions_are_no_inputs(tmp_path: Path) -> None:
    """DeBERTa maps its relative positions, a table that it reads itself, as it maps the tokens' states."""
    torch.manual_seed(0)
    t = quiet_transformers()
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    own = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    config = t.DebertaV2Config(**sizes, **own, position_biased_input=False)
    recipe, tuned = written(t.DebertaV2Model(config), tmp_path)
    submerge.merge(recipe, tmp_path / "out", settings=ROOM)
    model = submerge.load(tmp_path / "out")
    with torch.no_grad():
        wanted = [one(input_ids=IDS).last_hidden_state for one in tuned]
        mixed = model(input_ids=IDS, task=["a", "b", "b"]).last_hidden_state
        rows = torch.stack([wanted[0][0], wanted[1][1], wanted[1][2]])
        torch.testing.assert_close(mixed, rows, rtol=1e-4, atol=1e-5)
        routed = model(input_ids=IDS)
        for row, task in enumerate(routed.tasks):
            own_states = wanted["ab".index(task)][row]
            torch.testing.assert_close(routed.last_hidden_state[row], own_states, rtol=1e-4, atol=1e-5)
    maps = [name for site in model.router.sites for name in site.maps]
    assert any("query_proj" in name for name in maps)
    assert not any("pos_" in name for name in maps)
