"""How an adapter fits onto a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from store.helpers_adapter import (
    Made,
    applied,
    by_hand,
    make,
    same,
    stored,
    unfit,
    update,
)
from submerge.store import (
    LowRankPart,
    fit_adapter,
    open_adapter,
)


def test_bases_that_do_not_fit(tmp_path: Path) -> None:
    adapter = open_adapter(str(by_hand(tmp_path)))
    assert unfit(adapter, {"p.weight": (3, 4)}).startswith(
        f"{tmp_path}: the parameter is not there: q.weight"
    )
    assert "another vocabulary" in unfit(adapter, {"q.weight": (3, 5)})
    assert "update of the shape [3, 4], but the base has [7, 5]" in unfit(adapter, {"q.weight": (7, 5)})
    turned = fit_adapter(adapter, {"model.q.weight": (4, 3)}).parts["model.q.weight"]
    assert turned.shape == (4, 3)
    rows = {"e.token_adapter.trainable_tokens_delta": torch.ones(1, 4)}
    adapter = open_adapter(str(by_hand(tmp_path, rows, trainable_token_indices={"e": [9]})))
    assert "rows up to 9" in unfit(adapter, {"q.weight": (3, 4), "e.weight": (9, 4)})


def test_dora_of_single_experts_on_packed_ones(tmp_path: Path) -> None:
    """As adapters that were trained with transformers 4 have it: the base's other form takes it."""
    factors = {}
    for expert in range(2):
        key = f"base_model.model.layers.0.mlp.experts.{expert}.up_proj"
        factors[f"{key}.lora_A.weight"], factors[f"{key}.lora_B.weight"] = torch.ones(2, 4), torch.ones(3, 2)
        factors[f"{key}.lora_magnitude_vector"] = torch.ones(3)
    factors["q.lora_magnitude_vector"] = torch.ones(3)
    adapter = open_adapter(str(by_hand(tmp_path, factors, use_dora=True)))
    text = unfit(adapter, {"q.weight": (3, 4), "model.layers.0.mlp.experts.up_proj": (2, 3, 4)})
    assert "has updates of single experts, which the base packs in one tensor" in text
    assert "give the base with each expert by itself" in text
    apart = {f"model.layers.0.mlp.experts.{expert}.up_proj.weight": (3, 4) for expert in range(2)}
    assert set(fit_adapter(adapter, apart | {"q.weight": (3, 4)}).parts) >= set(apart)


def test_updates_of_convolutions_in_groups(tmp_path: Path) -> None:
    """Of Mamba's, in Falcon-H1 and others: PEFT trained them as if there were no groups, and merges none."""
    key = "base_model.model.conv1d"
    factors = {f"{key}.lora_A.weight": torch.ones(2, 8, 4), f"{key}.lora_B.weight": torch.ones(8, 2, 1)}
    adapter = open_adapter(str(by_hand(tmp_path, factors)))
    assert "convolution is in groups" in unfit(adapter, {"q.weight": (3, 4), "conv1d.weight": (8, 1, 4)})


@pytest.mark.parametrize("option", ["target_modules", "modules_to_save"])
def test_tied_heads(tmp_path: Path, option: str) -> None:
    """What was trained as one is one; a head that was trained by itself has no place in a tied base."""
    for tying in (True, False):
        names = ["embed_tokens"] if tying else ["embed_tokens", "lm_head"]
        options = {"target_modules": ["q_proj"], "ensure_weight_tying": tying}
        options[option] = [*names, *options.get(option, [])] if option == "target_modules" else names
        made = make("tied", tmp_path / str(tying), r=2, **options)
        del made.base["lm_head.weight"]
        adapter = open_adapter(str(tmp_path / str(tying)))
        assert "lm_head.weight" in adapter.parts
        if not tying:
            assert "changes lm_head.weight by itself" in unfit(adapter, made.shapes)
            continue
        adapter = fit_adapter(adapter, made.shapes)
        assert "lm_head.weight is tied to the embeddings" in adapter.notes
        assert set(adapter.parts) == {"model.embed_tokens.weight"} | {
            n for n in made.base if "q_proj.weight" in n
        }
        wanted = open_adapter(str(tmp_path / str(tying)))
        found = applied(made.base, adapter)["model.embed_tokens.weight"]
        head = wanted.parts["lm_head.weight"]
        if isinstance(head, LowRankPart):  # the file's two pairs of factors are one update
            expected = made.base["model.embed_tokens.weight"]
            torch.testing.assert_close(found, expected + update(wanted, "lm_head.weight", expected.shape))


def test_factors_of_the_stacks_of_one_table_are_refused(tmp_path: Path) -> None:
    """PEFT ties those of a T5's head to those of the table, and trains encoder's and decoder's apart."""
    names = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    factors = {f"{name}.lora_embedding_A": torch.ones(2, 5) for name in names}
    factors |= {f"{name}.lora_embedding_B": torch.ones(4, 2) for name in names}
    factors |= {"lm_head.lora_A.weight": torch.ones(2, 4), "lm_head.lora_B.weight": torch.ones(5, 2)}
    folder = by_hand(tmp_path, factors, target_modules=["q", "shared"], ensure_weight_tying=True)
    adapter = open_adapter(str(folder))
    shapes = {"q.weight": (3, 4), "shared.weight": (5, 4)}
    for of_base in (shapes, shapes | {f"{name}.weight": (5, 4) for name in names}):
        told = unfit(adapter, of_base)
        assert "has factors of decoder.embed_tokens.weight, encoder.embed_tokens.weight, which PEFT" in told
        assert "modules_to_save=['embed_tokens']" in told


def test_old_prefixes(tmp_path: Path) -> None:
    """An adapter whose names are those of an older Transformers fits a base with today's."""
    options = {"r": 2, "target_modules": ["q_proj", "k_proj"]}
    made: Made = make("llava", tmp_path, **options)
    old = {
        name.replace("model.language_model.", "language_model.model.").replace(
            "model.vision_tower.", "vision_tower.vision_model."
        ): tensor
        for name, tensor in stored(tmp_path).items()
    }
    assert set(old) != set(stored(tmp_path))
    from safetensors.torch import save_file

    save_file(old, tmp_path / "adapter_model.safetensors")
    adapter = fit_adapter(open_adapter(str(tmp_path)), made.shapes)
    same(applied(made.base, adapter), made.merged)
    assert "'language_model.model' read as 'model.language_model'" in adapter.notes[-1]


def test_targets_that_the_file_has_nothing_of_are_told(tmp_path: Path) -> None:
    """In a model with an adapter `mlp` PEFT saves the others without their MLPs."""
    made = make("llama", tmp_path, r=2, target_modules=["q_proj", "up_proj", "lm_head"])
    fitted = fit_adapter(open_adapter(str(tmp_path)), made.shapes)
    assert not fitted.left_out
    kept = {key: value for key, value in stored(tmp_path).items() if ".mlp." not in key}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    (told,) = fit_adapter(open_adapter(str(tmp_path)), made.shapes).left_out
    assert told.startswith("target_modules in its configuration names up_proj")
