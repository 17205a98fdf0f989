"""The kinds of PEFT's adapters that are read: how each calls its tensors, and which fields it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["KINDS", "LORA", "AdapterKind"]

# fields of all kinds that neither change what the tensors mean nor are read elsewhere: how it was trained
_INERT = frozenset({
    "auto_mapping", "exclude_modules", "inference_mode", "init_weights", "layers_pattern",
    "layers_to_transform", "peft_version", "runtime_config", "task_type",
})  # fmt: skip
_READ = frozenset({
    "base_model_name_or_path", "bias", "fan_in_fan_out", "modules_to_save", "peft_type", "revision",
    "target_modules",
})  # fmt: skip
_LORA_INERT = frozenset({
    "corda_config", "enable_lora", "ensure_weight_tying", "eva_config", "loftq_config", "lora_dropout",
    "lora_dtype", "lora_ga_config", "lorap_emb_lr", "lorap_lr_ratio", "megatron_core", "merge_weights",
    "monteclora_config", "qalora_group_size",
})  # fmt: skip
_LORA_READ = frozenset({
    "alpha_pattern", "init_lora_weights", "lora_alpha", "lora_bias", "r", "rank_pattern",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_rslora", "velora_config",
})  # fmt: skip


@dataclass(frozen=True)
class AdapterKind:
    """One kind: its name in the literature, and the names of a module's tensors behind the module's own.

    `fields` are those of its configuration that are read, or say only how it was trained, and `settings`
    those that are read besides, with PEFT's defaults. `alpha` is the field with the numerator of its scale,
    and `shared` are tensors that all modules have in common.
    """

    name: str
    tensors: tuple[str, ...]
    fields: frozenset[str] = frozenset()
    alpha: str = "lora_alpha"
    shared: tuple[str, ...] = ()
    settings: Mapping[str, bool | int | float] = field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """All fields that are known of it."""
        return self.fields | self.settings.keys() | _INERT | _READ


_LYCORIS = frozenset({
    "alpha", "alpha_pattern", "decompose_both", "decompose_factor", "module_dropout", "r", "rank_dropout",
    "rank_dropout_scale", "rank_pattern", "use_effective_conv2d",
})  # fmt: skip

LORA = AdapterKind(
    "LoRA",
    ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B",
     "lora_magnitude_vector", "lora_magnitude_vector.weight", "token_adapter.trainable_tokens_delta"),
    _LORA_INERT | _LORA_READ,
)  # fmt: skip
KINDS: Mapping[str, AdapterKind] = {
    "LORA": LORA,
    "ADALORA": AdapterKind(
        "AdaLoRA",
        ("lora_A", "lora_B", "lora_E"),
        LORA.fields | {
            "beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit",
            "total_step",
        },
    ),
    "LOHA": AdapterKind(
        "LoHa",
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        _LYCORIS,
        alpha="alpha",
    ),
    "LOKR": AdapterKind(
        "LoKr",
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        _LYCORIS,
        alpha="alpha",
    ),
    "IA3": AdapterKind("(IA)³", ("ia3_l",), frozenset({"feedforward_modules", "init_ia3_weights"})),
    "OFT": AdapterKind(
        "OFT",
        ("oft_R.weight", "oft_embedding_R.weight"),
        frozenset({"module_dropout", "oft_block_size", "r"}),
        settings={
            "block_share": False, "coft": False, "eps": 6e-5, "num_cayley_neumann_terms": 5,
            "use_cayley_neumann": True,
        },
    ),
    "BOFT": AdapterKind(
        "BOFT",
        ("boft_R", "boft_s"),
        frozenset({"boft_block_num", "boft_block_size", "boft_dropout", "boft_n_butterfly_factor"}),
    ),
    "HRA": AdapterKind("HRA", ("hra_u",), frozenset({"r"}), settings={"apply_GS": False}),
    "VERA": AdapterKind(
        "VeRA",
        ("vera_lambda_b", "vera_lambda_d"),
        frozenset({"d_initial", "projection_prng_key", "r", "save_projection", "vera_dropout"}),
        shared=("vera_A", "vera_B"),
    ),
    "FOURIERFT": AdapterKind(
        "FourierFT",
        ("fourierft_spectrum",),
        frozenset({"n_frequency", "n_frequency_pattern"}),
        settings={"random_loc_seed": 777, "scaling": 150.0},
    ),
    "MISS": AdapterKind("MiSS", ("miss_block",), frozenset({"mini_r", "miss_dropout", "r"})),
    "LN_TUNING": AdapterKind("LN tuning", ("ln_tuning_layers.weight", "ln_tuning_layers.bias")),
    "PVERA": AdapterKind(
        "PVeRA",
        ("pvera_lambda_b", "pvera_lambda_d"),
        frozenset({
            "d_initial", "generator_seed", "projection_prng_key", "pvera_dropout", "r", "sample_at_inference",
            "save_projection",
        }),
        shared=("pvera_A", "pvera_B"),
    ),
    "RANDLORA": AdapterKind(
        "RandLoRA",
        ("randlora_lambda", "randlora_gamma"),
        frozenset({
            "projection_prng_key", "r", "randlora_dropout", "save_projection", "sparse", "very_sparse",
        }),
        shared=("randlora_A", "randlora_B"),
        settings={"randlora_alpha": 640.0},
    ),
    "VBLORA": AdapterKind(
        "VB-LoRA",
        tuple(
            f"vblora_logits_{letter}{end}"
            for letter in "AB"
            for end in ("", "_topk_indices", "_topk_weights")
        ),
        frozenset({
            "init_logits_std", "init_vector_bank_bound", "num_vectors", "r", "save_only_topk_weights",
            "vblora_dropout", "vector_length",
        }),
        shared=("vblora_vector_bank",),
        settings={"topk": 2},
    ),
    "UNILORA": AdapterKind(
        "Uni-LoRA",
        ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
        frozenset({
            "init_theta_d_bound", "proj_seed", "r", "save_indices", "theta_d_length", "unilora_dropout",
        }),
        shared=("unilora_theta_d",),
    ),
    "DELORA": AdapterKind(
        "DeLoRA",
        ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
        frozenset({"delora_lambda", "lambda_pattern", "module_dropout", "r", "rank_pattern"}),
    ),
    "GRALORA": AdapterKind(
        "GraLoRA",
        ("gralora_A", "gralora_B", "gralora_A_general.weight", "gralora_B_general.weight"),
        frozenset({"gralora_dropout", "gralora_k", "hybrid_r", "r"}),
        settings={"alpha": 64.0},
    ),
    "C3A": AdapterKind("C3A", ("c3a_kernel",), frozenset({"block_size", "block_size_pattern"})),
    "SHIRA": AdapterKind(
        "SHiRA", ("shira_weight", "shira_indices"), frozenset({"mask_type", "r", "random_seed"})
    ),
    "SUPERTUNING": AdapterKind(
        "Super-Tuning",
        ("supertuning_values", "supertuning_indices", "supertuning_lora_A.weight",
         "supertuning_lora_B.weight"),
        frozenset({"lora_dropout", "r", "save_precomputed_indices", "select_top", "sparsity"}),
        settings={"lora_alpha": 1.0},
    ),
    "WAVEFT": AdapterKind(
        "WaveFT",
        ("waveft_spectrum",),
        frozenset({"n_frequency", "n_frequency_pattern", "proportional_parameters", "wavelet_family"}),
        settings={"random_loc_seed": 777, "scaling": 25.0, "use_idwt": True},
    ),
    "HIRA": AdapterKind(
        "HiRA",
        ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"),
        frozenset({"hira_dropout", "r", "rank_pattern"}),
    ),
    "GLORA": AdapterKind(
        "GLoRA",
        tuple(f"glora_{letter}.{end}" for letter in "ABCDE" for end in ("Xd", "Xu", "X", "zeros")),
        frozenset({"config_A_B", "config_C", "config_D_E", "r"}),
    ),
    "ROAD": AdapterKind(
        "RoAd", ("road_theta", "road_alpha"), frozenset({"variant"}), settings={"group_size": 64}
    ),
    "BEFT": AdapterKind("BEFT", ("beft_bias",)),
    "TRAINABLE_TOKENS": AdapterKind(
        "trainable tokens", ("trainable_tokens_delta",), frozenset({"token_indices"})
    ),
}  # fmt: skip
"""By `peft_type`. All others are refused by name."""
