"""Configurations of adapters: what they mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from store.helpers_adapter import (
    applied,
    by_hand,
    make,
    refused,
    same,
)
from submerge.store import (
    LowRankPart,
    open_adapter,
)

KEYS = [
    "q_proj",
    "k_proj",
    "self_attn.v_proj",
    r"layers\.0\..*",
    "model.layers.1.mlp.up_proj",
    "embed_tokens",
]
RANKS = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 6), max_size=3)


@settings(max_examples=25)
@given(
    rank=st.integers(1, 6),
    alpha=st.integers(1, 32),
    ranks=RANKS,
    alphas=RANKS,
    modules=st.sets(st.sampled_from(["q_proj", "v_proj", "up_proj", "embed_tokens"]), min_size=1),
    flags=st.fixed_dictionaries({"use_rslora": st.booleans(), "use_dora": st.booleans()}),
    bias=st.sampled_from(["none", "all", "lora_only"]),
)
def test_any_configuration(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: int,
    ranks: dict[str, int],
    alphas: dict[str, int],
    modules: set[str],
    flags: dict[str, bool],
    bias: str,
) -> None:
    # the first pattern that matches counts, and the file has them in alphabetical order
    patterns = {"rank_pattern": dict(sorted(ranks.items())), "alpha_pattern": dict(sorted(alphas.items()))}
    options = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), "bias": bias}
    made = make("llama", tmp_path_factory.mktemp("a"), **options, **patterns, **flags)
    same(applied(made.base, open_adapter(str(made.folder))), made.merged)


@pytest.mark.parametrize(
    ("pattern", "module", "matches"),
    [
        ("q", "a.q", True),
        ("q", "a.xq", False),
        ("a.q", "b.a.q", True),
        (r"layers\.[01]\.q", "m.layers.1.q", True),
        ("^a.q", "a.q", True),
        (".*q", "a.xq", True),
        ("q|k", "a.k", True),
        ("q", "q.b", False),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, module: str, matches: bool) -> None:
    tensors = {
        "q.lora_A.weight": torch.ones(()),
        "q.lora_B.weight": torch.ones(()),
        f"{module}.lora_A.weight": torch.ones(2, 4),
        f"{module}.lora_B.weight": torch.ones(3, 2),
    }
    adapter = open_adapter(str(by_hand(tmp_path, tensors, alpha_pattern={pattern: 16})))
    part = adapter.parts[f"{module}.weight"]
    assert isinstance(part, LowRankPart)
    assert part.scale == (8 if matches else 2)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"exclude_modules": ["q"]}, "exclude_modules in its configuration leaves out layers.1.q"),
        ({"exclude_modules": r".*\.q"}, "exclude_modules in its configuration leaves out layers.1.q"),
        ({"layers_to_transform": [0]}, "layers_to_transform in its configuration leaves out layers.1.q"),
        ({"layers_to_transform": 0}, "layers_to_transform in its configuration leaves out layers.1.q"),
        ({"lora_bias": True}, "the file holds no bias of B"),
        ({"trainable_token_indices": [1]}, "names rows that the file does not hold"),
        ({"newest": 3}, "sets newest, of which it is not known what it does"),
        ({"exclude_modules": ["k"], "layers_to_transform": [1], "newest": None, "lorap_emb_lr": 1e-6}, ""),
    ],
)
def test_fields_that_the_file_does_not_bear_out(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    factors = {f"q.lora_{side}.weight": torch.ones(()) for side in "AB"}  # none of this module
    factors |= {"layers.1.q.lora_A.weight": torch.ones(2, 4), "layers.1.q.lora_B.weight": torch.ones(3, 2)}
    left_out = open_adapter(str(by_hand(tmp_path, factors, **config))).left_out
    assert [told in text for text in left_out] == ([True] if told else [])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"peft_type": ["LORA"]}, "is a ['LORA'] adapter, which is not read"),
        ({"peft_type": "lora"}, "write its peft_type as PEFT does: LORA"),
        ({"peft_type": "PSOFT"}, "is a PSOFT adapter, which is not read — merge it with PEFT"),
        ({"peft_type": "BONE"}, "merge it with the version of PEFT that it was trained with"),
        ({"peft_type": "PREFIX_TUNING"}, "no plain update of the weights: leave it out"),
        ({"peft_type": None}, "names no peft_type"),
        ({"layer_replication": [[0, 2]]}, "other layers"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"arrow_config": {"top_k": 2}}, "Arrow"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"use_bdlora": {"nblocks": 4, "target_modules_bd_b": ["q"]}}, "do not fit 4 blocks"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"use_newlora": True}, "use_newlora is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "took its start out of the base"),
        ({"init_lora_weights": "corda"}, "took its start out of the base"),
        ({"init_lora_weights": "lora_ga"}, "took its start out of the base"),
        ({"init_lora_weights": "loftq"}, "quantised base"),
        ({"init_lora_weights": "strange"}, "is not known"),
        ({"r": 0}, "r is 0 where a whole number"),
        ({"r": 3}, "has rank 2, but the configuration says 3"),
        ({"lora_alpha": "4"}, "lora_alpha is '4'"),
        ({"rank_pattern": {"q": 5}}, "has rank 2, but the configuration says 5"),
        ({"rank_pattern": [3]}, "where an object is expected"),
        ({"alpha_pattern": {"(": 5}}, "no regular expression"),
        ({"bias": "some"}, "none, all or lora_only"),
        ({"use_rslora": "yes"}, "true or false"),
        ({"modules_to_save": "head"}, "a list of names"),
        ({"trainable_token_indices": {"q": [1, 1]}}, "a row twice"),
        ({"trainable_token_indices": 3}, "a list of rows"),
        ({"use_dora": True}, "lacks a magnitude"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    text = refused(by_hand(tmp_path, **config))
    assert expected in text
    assert "adapter_" in text.partition(": ")[0]
    assert text.count("\n") == 0


def test_a_configuration_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    assert open_adapter(str(folder)).rank == 2
