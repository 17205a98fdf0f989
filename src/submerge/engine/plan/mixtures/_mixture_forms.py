"""The architectures of mixtures of experts: names of their tensors, and what their configurations say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMS", "PROJECTIONS", "MixtureForm"]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The linear maps of a dense feed-forward block, E(x) = W_down (σ(W_gate x) ∘ W_up x)."""

_ATTENTION = frozenset(f"self_attn.{side}_proj.weight" for side in "qkvo")
_LAYER = _ATTENTION | {"input_layernorm.weight", "post_attention_layernorm.weight"}
_BIASES = frozenset(f"self_attn.{side}_proj.bias" for side in "qkv")
_ALL_BIASES = _BIASES | {"self_attn.o_proj.bias"}
_NORMS = frozenset({"self_attn.q_norm.weight", "self_attn.k_norm.weight"})


@dataclass(frozen=True)
class MixtureForm:
    """An architecture whose feed-forward blocks are experts, made of models of a dense one.

    Attributes:
        name: as recipes begin it, in any case.
        architecture: its class in transformers.
        dense: the `model_type` of models that it can be made of.
        shared: how many experts may act on every token.
        module: what a layer calls its experts with their gate.
        config: what its configuration says beside the dense model's, from the number of experts, how many
            act on a token, how many are shared, and the width of an expert.
        layer: the tensors that a layer may have beside the experts.
        projections: what an expert calls the projections of a dense block.
        shared_module: what a layer calls its shared expert; empty where there is none.
        gates_shared: whether the shared expert is weighed by a gate.
        needs_biases: whether query, key and value have biases in any case.
    """

    name: str
    architecture: str
    dense: tuple[str, ...]
    shared: tuple[int, ...]
    module: str
    config: Callable[[int, int, int, int], dict[str, Any]]
    layer: frozenset[str] = _LAYER
    projections: Mapping[str, str] = field(default_factory=lambda: {name: name for name in PROJECTIONS})
    shared_module: str = ""
    gates_shared: bool = False
    needs_biases: bool = False

    def expert(self, layer: str, number: int, projection: str) -> str:
        """Return the name of a weight of an expert; `layer` is the prefix of a layer."""
        return f"{layer}.{self.module}.experts.{number}.{self.projections[projection]}.weight"

    def shared_expert(self, layer: str, projection: str) -> str:
        """Return the name of a weight of the shared expert."""
        return f"{layer}.{self.module}.{self.shared_module}.{projection}.weight"

    def gate(self, layer: str) -> str:
        """Return the name of the gate's weight."""
        return f"{layer}.{self.module}.gate.weight"

    def shared_gate(self, layer: str) -> str:
        """Return the name of the weight of the shared expert's gate."""
        return f"{layer}.{self.module}.shared_expert_gate.weight"


def _mixtral(experts: int, active: int, shared: int, width: int) -> dict[str, Any]:
    return {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": active}


def _qwen3(experts: int, active: int, shared: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "num_experts": experts,
        "num_experts_per_tok": active,
        "moe_intermediate_size": width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen(experts: int, active: int, shared: int, width: int) -> dict[str, Any]:
    own = {"model_type": "qwen2_moe", "shared_expert_intermediate_size": width, "qkv_bias": True}
    return _qwen3(experts, active, shared, width) | own


def _deepseek(experts: int, active: int, shared: int, width: int) -> dict[str, Any]:
    code = "deepseek-ai/deepseek-moe-16b-base--"
    return {
        "model_type": "deepseek",
        "n_routed_experts": experts,
        "n_shared_experts": shared or None,
        "num_experts_per_tok": active,
        "moe_intermediate_size": width,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "auto_map": {
            "AutoConfig": f"{code}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{code}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{code}modeling_deepseek.DeepseekForCausalLM",
        },
    }


MIXTRAL = MixtureForm(
    name="Mixtral",
    architecture="MixtralForCausalLM",
    dense=("llama", "mistral"),
    shared=(0,),
    module="block_sparse_moe",
    projections={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    config=_mixtral,
)
DEEPSEEK = MixtureForm(
    name="DeepSeek MoE",
    architecture="DeepseekForCausalLM",
    dense=("llama", "mistral"),
    shared=(0, 1),
    module="mlp",
    config=_deepseek,
    layer=_LAYER | _ALL_BIASES,
    shared_module="shared_experts",
)
QWEN = MixtureForm(
    name="Qwen MoE",
    architecture="Qwen2MoeForCausalLM",
    dense=("llama", "mistral", "qwen2"),
    shared=(1,),
    module="mlp",
    config=_qwen,
    layer=_LAYER | _BIASES,
    shared_module="shared_expert",
    gates_shared=True,
    needs_biases=True,
)
QWEN3 = MixtureForm(
    name="Qwen3 MoE",
    architecture="Qwen3MoeForCausalLM",
    dense=("qwen3",),
    shared=(0,),
    module="mlp",
    config=_qwen3,
    layer=_LAYER | _ALL_BIASES | _NORMS,
)

FORMS = (MIXTRAL, DEEPSEEK, QWEN, QWEN3)
"""All of them, in the order in which mergekit tries them."""
