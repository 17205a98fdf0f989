"""Fused matrices: their layouts are those of transformers' classes, by what these compute without a map."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import pytest
import torch

from _models import quiet_transformers
from submerge.algebra import FusedLayout
from submerge.names import fused_layout, is_fused

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
WIDE = SIZES | {"intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0}
GROUPED = WIDE | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32, "vocab_size": 64}
LINEAR = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention"],
}


TEXT = {"input_ids": torch.arange(1, 7).unsqueeze(0)}
IMAGE = {"pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


@dataclass(frozen=True)
class Case:
    """A class with a fused matrix, `fused`, and the module that takes in what is computed with it, `after`.

    `outer` is the type of a model of which the class is a part.
    """

    name: str
    config: str
    model: str
    fused: str
    after: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=lambda: TEXT)
    outer: str = ""

    def __str__(self) -> str:
        return self.name


ATTENTIONS = (
    Case("phi3", "Phi3Config", "Phi3Model", "qkv_proj", "o_proj", GROUPED),
    Case("codegen", "CodeGenConfig", "CodeGenModel", "qkv_proj", "out_proj", GPT | {"rotary_dim": 4}),
    Case("neox", "GPTNeoXConfig", "GPTNeoXModel", "query_key_value", "dense", WIDE),
    Case(
        "neox-ja",
        "GPTNeoXJapaneseConfig",
        "GPTNeoXJapaneseModel",
        "query_key_value",
        "dense",
        SIZES | {"intermediate_multiple_size": 2},
    ),
    Case(
        "bloom", "BloomConfig", "BloomModel", "query_key_value", "dense", SIZES | {"n_head": 4, "n_layer": 1}
    ),
    Case("persimmon", "PersimmonConfig", "PersimmonModel", "query_key_value", "dense", WIDE),
    Case(
        "falcon-groups",
        "FalconConfig",
        "FalconModel",
        "query_key_value",
        "dense",
        SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    Case("falcon-multi-query", "FalconConfig", "FalconModel", "query_key_value", "dense", SIZES),
    Case(
        "falcon-alibi",
        "FalconConfig",
        "FalconModel",
        "query_key_value",
        "dense",
        SIZES | {"multi_query": False, "alibi": True},
    ),
    Case("gpt2", "GPT2Config", "GPT2Model", "c_attn", "c_proj", GPT),
    Case("imagegpt", "ImageGPTConfig", "ImageGPTModel", "c_attn", "c_proj", GPT),
    Case("openai-gpt", "OpenAIGPTConfig", "OpenAIGPTModel", "c_attn", "c_proj", GPT),
    Case("bigcode", "GPTBigCodeConfig", "GPTBigCodeModel", "c_attn", "c_proj", GPT),
    Case(
        "bigcode-heads",
        "GPTBigCodeConfig",
        "GPTBigCodeModel",
        "c_attn",
        "c_proj",
        GPT | {"multi_query": False},
    ),
    Case(
        "mpt",
        "MptConfig",
        "MptModel",
        "Wqkv",
        "out_proj",
        {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64},
    ),
    Case(
        "dbrx",
        "DbrxConfig",
        "DbrxModel",
        "Wqkv",
        "out_proj",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 1,
            "vocab_size": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1e4},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
        },
    ),
    Case("modernbert", "ModernBertConfig", "ModernBertModel", "Wqkv", "Wo", WIDE),
    Case(
        "vitdet",
        "VitDetConfig",
        "VitDetModel",
        "qkv",
        "proj",
        {k: v for k, v in SIZES.items() if k != "vocab_size"}
        | {"image_size": 16, "pretrain_image_size": 16, "patch_size": 4},
        IMAGE,
    ),
    Case(
        "exaone-vision",
        "Exaone4_5_VisionConfig",
        "models.exaone4_5.modeling_exaone4_5.Exaone4_5_VisionAttention",
        "qkv",
        "proj",
        {"hidden_size": 32, "num_heads": 4, "num_key_value_heads": 2, "depth": 1},
        {
            "hidden_states": torch.randn(6, 32, generator=torch.Generator().manual_seed(0)),
            "cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
            "position_embeddings": (torch.ones(6, 8), torch.zeros(6, 8)),
        },
    ),
    Case("deberta", "DebertaConfig", "DebertaModel", "in_proj", "dense", WIDE),
    Case(
        "blip",
        "BlipVisionConfig",
        "BlipVisionModel",
        "qkv",
        "projection",
        {k: v for k, v in WIDE.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 8},
        IMAGE,
    ),
    Case(
        "qwen2-vl",
        "Qwen2VLVisionConfig",
        "models.qwen2_vl.modeling_qwen2_vl.VisionAttention",
        "qkv",
        "proj",
        {"embed_dim": 32, "num_heads": 4, "depth": 1},
        {
            "hidden_states": torch.randn(6, 32, generator=torch.Generator().manual_seed(0)),
            "cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
            "position_embeddings": (torch.ones(6, 8), torch.zeros(6, 8)),
        },
        outer="qwen2_vl",
    ),
)
"""Those of which keys are as good as queries: without either, all attention is uniform."""
OTHERS = (
    Case("phi3", "Phi3Config", "Phi3Model", "gate_up_proj", "down_proj", GROUPED),
    Case("glm", "GlmConfig", "GlmModel", "gate_up_proj", "down_proj", GROUPED | {"head_dim": 8}),
    Case("glm4", "Glm4Config", "Glm4Model", "gate_up_proj", "down_proj", GROUPED | {"head_dim": 8}),
    Case("modernbert", "ModernBertConfig", "ModernBertModel", "Wi", "Wo", WIDE),
    Case(
        "granite",
        "GraniteMoeSharedConfig",
        "GraniteMoeSharedModel",
        "input_linear",
        "output_linear",
        GROUPED | {"shared_intermediate_size": 40, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    Case(
        "minimax",
        "MiniMaxConfig",
        "MiniMaxModel",
        "qkv_proj",
        "out_proj",
        GROUPED | {"layer_types": ["linear_attention"], "head_dim": 8, "num_local_experts": 2},
    ),
    Case(
        "qwen3-next",
        "Qwen3NextConfig",
        "Qwen3NextModel",
        "in_proj_qkvz",
        "out_proj",
        GROUPED | LINEAR | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        TEXT | {"use_cache": False},
    ),
    Case(
        "qwen3.5",
        "Qwen3_5TextConfig",
        "Qwen3_5TextModel",
        "in_proj_qkv",
        "out_proj",
        GROUPED | LINEAR,
        TEXT | {"use_cache": False},
    ),
)
"""Those that compute nothing without one of their maps."""


@dataclass(frozen=True)
class Computed:
    """A model, and what `after` takes in without the rows of some maps of `fused`."""

    model: Any
    fused: Any
    after: Any
    inputs: Mapping[str, torch.Tensor]

    def without(self, layout: FusedLayout, *maps: str) -> torch.Tensor:
        weight = self.fused.weight.data
        before = weight.clone()
        for which in map(layout.maps.index, maps):
            places = torch.arange(layout.length).view(layout.groups, -1)
            first = sum(layout.sizes[:which])
            weight.index_fill_(layout.axis, places[:, first : first + layout.sizes[which]].reshape(-1), 0)
        seen: list[torch.Tensor] = []
        handle = self.after.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        with torch.no_grad():
            self.model(**self.inputs)
        handle.remove()
        weight.copy_(before)
        return seen[0]


def computed(case: Case) -> tuple[Computed, FusedLayout]:
    """Return a model with large random weights and no biases, and the layout of its fused matrix."""
    transformers = quiet_transformers()
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(**copy.deepcopy(dict(case.sizes)))
    config._attn_implementation = "eager"
    model = attrgetter(case.model)(transformers)(config).eval()
    modules = {name: m for name, m in model.named_modules() if getattr(m, "weight", None) is not None}
    path = next(name for name in modules if name.rpartition(".")[2] == case.fused)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(std=0.3)
    takers = [name for name in modules if name.rpartition(".")[2] == case.after]
    inside = [name for name in takers if name.startswith(path.removesuffix(case.fused))]
    after = modules[
        (inside or [name for name in takers if list(modules).index(name) > list(modules).index(path)])[0]
    ]
    told = {"model_type": case.outer, "part": config.to_dict()} if case.outer else config.to_dict()
    layout = fused_layout(f"{path}.weight", tuple(modules[path].weight.shape), told)
    assert layout is not None
    return Computed(model, modules[path], after, case.inputs), layout


def told_apart(found: Computed, layout: FusedLayout) -> bool:
    """Return whether attention is uniform without queries or keys alike, and nothing without values."""
    whole, uniform = found.without(layout), found.without(layout, "q", "k")
    scale = float(whole.abs().max())

    def far(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max()) / scale

    assert far(whole, uniform) > 1e-2, "the model does not attend"
    nothing = torch.zeros_like(whole)
    alike = [far(found.without(layout, "q"), uniform), far(found.without(layout, "k"), uniform)]
    return max(*alike, far(found.without(layout, "v"), nothing)) < 1e-5


@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_queries_keys_and_values_are_told_apart(case: Case) -> None:
    found, layout = computed(case)
    assert set(layout.maps) == {"q", "k", "v"}
    assert told_apart(found, layout)


def test_other_layouts_are_found_wrong() -> None:
    """This is a test of the one above."""
    case = next(case for case in ATTENTIONS if case.name == "falcon-groups")
    found, layout = computed(case)
    in_a_row = FusedLayout(layout.maps, tuple(layout.groups * size for size in layout.sizes))
    for wrong in (in_a_row, replace(layout, maps=("q", "v", "k")), replace(layout, maps=("k", "v", "q"))):
        assert not told_apart(found, wrong)


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_nothing_is_left_without_a_map(case: Case) -> None:
    found, layout = computed(case)
    scale = float(found.without(layout).abs().max())
    assert scale > 0
    for one in layout.maps:
        assert float(found.without(layout, one).abs().max()) < 1e-5 * scale, one


def test_torchs_attention_is_in_a_row() -> None:
    attention = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    weight = attention.in_proj_weight.detach()
    layout = fused_layout("resblocks.0.attn.in_proj_weight", tuple(weight.shape), None)
    assert layout == FusedLayout(("q", "k", "v"), (32, 32, 32))
    q, k, v = weight.split(layout.sizes)
    x = torch.randn(1, 5, 32)
    heads = [(x @ w.T).view(1, 5, 4, 8).transpose(1, 2) for w in (q, k, v)]
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(1, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, x, x)[0], attention.out_proj(mixed), rtol=0, atol=1e-5)


# --- which layout a model has ---------------------------------------------------------------------

PHI3 = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
OTHER_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 8}
QKV = "model.layers.3.self_attn.qkv_proj.weight"


def test_cross_attention_of_gpt2_has_no_queries() -> None:
    found = fused_layout("transformer.h.0.crossattention.c_attn.weight", (48, 96), {"model_type": "gpt2"})
    assert found == FusedLayout(("k", "v"), (48, 48), axis=1)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", "text_config": PHI3, "vision_config": {"model_type": "clip_vision_model"}},
        {"model_type": "x", "thinker_config": {"model_type": "y", "text_config": PHI3}},
    ],
)
def test_a_part_of_a_configuration_tells(config: dict[str, Any]) -> None:
    for name in (QKV, f"language_model.{QKV}"):
        assert fused_layout(name, (64, 32), config) == FusedLayout(("q", "k", "v"), (32, 16, 16))


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        (QKV, (64, 32), None),
        (QKV, (64, 32), {"model_type": "newer"}),
        (QKV, (64, 32), {k: v for k, v in PHI3.items() if k != "num_attention_heads"}),
        (QKV, (96, 32), PHI3),
        (QKV, (64, 32, 1), PHI3),
        (QKV, (64, 32), {"text_config": PHI3, "other_config": PHI3 | OTHER_HEADS}),
        ("h.0.attn.in_proj_weight", (64, 32), None),
        ("h.0.crossattention.c_attn.weight", (64, 32), {"model_type": "gpt_bigcode", "n_head": 4}),
        ("layers.0.mlp.dense_h_to_4h.weight", (128, 32), {"model_type": "chatglm"}),
        ("layers.0.mixer.in_proj.weight", (64, 32), {"model_type": "mamba"}),
        ("layers.0.attn.qkv.weight", (96, 32), {"model_type": "clip", "text_config": PHI3}),
    ],
)  # fmt: skip
def test_what_is_not_known_has_no_layout(
    name: str, shape: tuple[int, ...], config: dict[str, Any] | None
) -> None:
    assert fused_layout(name, shape, config) is None


def test_models_whose_code_comes_with_their_weights() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    in_a_row = FusedLayout(("q", "k", "v"), (32, 32, 32))
    for name, shape, config, wanted in (
        ("wqkv", (64, 32), {"model_type": "internlm2", **heads}, FusedLayout(("q", "k", "v"), (16, 8, 8), 2)),
        ("W_pack", (96, 32), {"model_type": "baichuan"}, in_a_row),
        ("c_attn", (96, 32), {"model_type": "qwen"}, in_a_row),
        (
            "query_key_value",
            (96, 64),
            {"model_type": "chatglm", "num_attention_heads": 4, "multi_query_group_num": 1, "kv_channels": 16,
             "multi_query_attention": True},
            FusedLayout(("q", "k", "v"), (64, 16, 16)),
        ),
        (
            "dense_h_to_4h",
            (80, 32),
            {"model_type": "chatglm", "ffn_hidden_size": 40},
            FusedLayout(("gate", "up"), (40, 40)),
        ),
    ):  # fmt: skip
        assert fused_layout(f"layers.0.{name}.weight", shape, config) == wanted, name


def test_names_that_tell_that_a_matrix_is_fused() -> None:
    fused = (
        "attn.qkv.weight",
        "attn.in_proj_weight",
        "attn.Wqkv.weight",
        "mlp.gate_up_proj.weight",
        "a.c_attn.weight",
    )
    others = (
        "attn.q_proj.weight",
        "attn.qk_norm.weight",
        "mixer.in_proj.weight",
        "mlp.up_proj.weight",
        "a.kv_b_proj",
    )
    assert all(map(is_fused, fused))
    assert not any(map(is_fused, others))
