from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from store.helpers_adapter import (
    ATTENTION,
    CASES,
    applied,
    by_hand,
    copied,
    make,
    refused,
    same,
    stored,
    update,
    wrap,
)
from submerge.store import (
    Add,
    FileTable,
    LowRankPart,
    Replace,
    Rows,
    fit_adapter,
    is_adapter,
    open_adapter,
)


@pytest.mark.parametrize("case", CASES)
def test_base_and_adapter_are_what_peft_merges(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make(kind, tmp_path / "a", **options)
    assert is_adapter(made.folder)
    adapter = fit_adapter(open_adapter("a", root=tmp_path), made.shapes)
    same(applied(made.base, adapter), made.merged)
    changed = {name for name in made.base if not torch.equal(made.base[name], made.merged[name])}
    assert changed == set(adapter.parts)
    assert adapter.notes
    assert adapter.files == (made.folder / "adapter_model.safetensors",)


@pytest.mark.parametrize("case", ["linear", "embedding", "conv1d", "classifier", "convolutions", "bias-of-b"])
def test_the_base_is_not_needed(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make(kind, tmp_path, **options)
    adapter = open_adapter(str(tmp_path))
    same(applied(made.base, adapter), made.merged)
    assert all(part.shape == tuple(made.base[name].shape) for name, part in adapter.parts.items())
    assert {name for name in adapter.parts if adapter.dense_only(name) is None} == {
        name for name, part in adapter.parts.items() if isinstance(part, LowRankPart)
    }


def test_parts(tmp_path: Path) -> None:
    kinds = {
        "dora": ("model.layers.0.self_attn.q_proj.weight", LowRankPart, "DoRA"),
        "whole": ("lm_head.weight", Replace, "whole"),
        "tokens": ("model.embed_tokens.weight", Rows, "rows"),
        "bias-of-b": ("model.layers.0.self_attn.q_proj.bias", Add, "bias"),
    }
    for case, (name, kind, reason) in kinds.items():
        model, options = CASES[case]
        make(model, tmp_path / case, **options)
        adapter = open_adapter(str(tmp_path / case))
        part = adapter.parts[name]
        assert isinstance(part, kind)
        assert reason in (adapter.dense_only(name) or "")
        if isinstance(part, Rows):
            assert part.indices == (7, 3, 11)


def test_a_converted_start(tmp_path: Path) -> None:
    """PiSSA takes its start out of the base; what PEFT converts is an update of the base again."""
    wrapped, base = wrap("llama", r=2, target_modules=ATTENTION, init_lora_weights="pissa", random=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(str(tmp_path / "start"))
        wrapped.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        wrapped.save_pretrained(str(tmp_path / "moved"))
        start = str(tmp_path / "start")
        wrapped.save_pretrained(str(tmp_path / "converted"), path_initial_model_for_weight_conversion=start)
        merged = copied(wrapped.merge_and_unload())
    assert "took its start out of the base" in refused(tmp_path / "moved")
    adapter = open_adapter(str(tmp_path / "converted"))
    assert adapter.rank == 4
    same(applied(base, adapter), merged)


def test_what_is_recognised(tmp_path: Path) -> None:
    make("llama", tmp_path / "a", **CASES["patterns"][1])
    adapter = open_adapter(str(tmp_path / "a"))
    assert adapter.rank == 7
    assert "rsLoRA" in adapter.notes
    assert "1 module of rank 3, 3 of rank 4, 2 of rank 7" in adapter.notes
    assert (adapter.base, adapter.base_revision, adapter.revision, adapter.pending) == (
        None,
        None,
        None,
        False,
    )
    folder = by_hand(tmp_path / "b", base_model_name_or_path="org/base", revision="v1", new_thing=3)
    adapter = open_adapter(str(folder))
    assert (adapter.base, adapter.base_revision, adapter.config["r"]) == ("org/base", "v1", 2)
    assert any("new_thing" in text for text in adapter.left_out)


@given(
    rank=st.integers(1, 5),
    alpha=st.floats(0.1, 64),
    rslora=st.booleans(),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_scale_is_in_the_factors_once(
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: float,
    rslora: bool,
    transposed: bool,
    dtype: torch.dtype,
) -> None:
    draw = torch.Generator().manual_seed(rank)
    b, a = torch.randn(3, rank, generator=draw).to(dtype), torch.randn(rank, 4, generator=draw).to(dtype)
    folder = by_hand(
        tmp_path_factory.mktemp("a"),
        {"q.lora_A.weight": a, "q.lora_B.weight": b},
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        fan_in_fan_out=transposed,
    )
    adapter = open_adapter(str(folder))
    expected = alpha / (math.sqrt(rank) if rslora else rank) * (b.double() @ a.double())
    expected = expected.T if transposed else expected
    with FileTable() as table:
        left, right = adapter.factors("q.weight", table)
    assert left.dtype == right.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert adapter.parts["q.weight"].shape == tuple(expected.shape)
    torch.testing.assert_close((left @ right).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"k.lora_A.weight": torch.ones(2, 4)}, "k lacks its factor B"),
        ({"k.lora_B.weight": torch.ones(3, 2)}, "k lacks its factor A"),
        ({"k.weight": torch.ones(3)}, "does not account for (base_model.model.k.weight)"),
        ({"k.bias": torch.ones(3)}, "does not account for"),
        ({"q.lora_A.default.weight": torch.ones(2, 4)}, "which are one tensor"),
        (
            {f"k.lora_{side}.{own}.weight": torch.ones(2, 2) for side in "AB" for own in ("law", "chess")},
            "holds several adapters (chess, law)",
        ),
        ({"q.lora_diag": torch.ones(2)}, "are not known of LoRA"),
        ({"q.lora_magnitude_vector": torch.ones(3)}, "holds a magnitude"),
        ({"q.lora_A.weight": torch.ones(3, 4)}, "do not fit each other"),
        ({"q.lora_A.weight": torch.ones(2, 4, 3, 3)}, "impossible shapes"),
        ({"q.lora_A.weight": torch.ones(2, 0)}, "empty factors"),
        ({"q.lora_A.weight": torch.ones(0)}, "empty factors"),
        ({"q.lora_B.bias": torch.ones(4)}, "the bias of q"),
        (
            {"q.lora_A.weight": torch.ones(2, 4, 3), "q.lora_B.weight": torch.ones(3, 1, 1)},
            "a convolution in groups",
        ),
        ({"e.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}, "trainable_token_indices names none"),
        (
            {"q.base_layer.lora_A.weight": torch.ones(2, 4), "q.base_layer.lora_B.weight": torch.ones(3, 2)},
            "2 times",
        ),
        ({"q.lora_A.weight": torch.ones(2, 4, dtype=torch.complex64)}, "quantised or complex"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], expected: str) -> None:
    text = refused(by_hand(tmp_path, tensors))
    assert expected in text
    assert "adapter_model.safetensors" in text


@pytest.mark.parametrize("wrapped", ["_orig_mod.{}", "module.{}", "base_model.model.{}", "{}"])
def test_keys_of_other_savers(wrapped: str, tmp_path: Path) -> None:
    """State dicts that are saved by hand have the adapter's name, and words of wrappers."""
    options = CASES["whole"][1] | {"trainable_token_indices": [3, 5], "use_dora": True}
    wrapped_model, base = wrap("llama", **options)
    wrapped_model.save_pretrained(str(tmp_path))
    made = open_adapter(str(tmp_path))
    wanted = applied(base, made)
    kinds = ("lora_", "modules_to_save", "original_module", "trainable_tokens_delta")
    state = {
        wrapped.format(key.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")): value.clone()
        for key, value in wrapped_model.state_dict().items()
        if any(kind in key for kind in kinds)
    }
    save_file(state, tmp_path / "adapter_model.safetensors")
    found = open_adapter(str(tmp_path))
    assert found.parts.keys() == made.parts.keys()
    same(applied(base, found), wanted)


def test_heads_by_the_name_of_another_program(tmp_path: Path) -> None:
    factors = {f"model.unembed_tokens.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    assert "lm_head.weight" in open_adapter(str(by_hand(tmp_path, factors))).parts


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    text = refused(by_hand(tmp_path, use_qalora=True, init_lora_weights="pissa", r=0))
    assert text.count("\n") == 2
    tensors = {"k.lora_A.weight": torch.ones(2, 4), "x.weight": torch.ones(2), "q.lora_x": torch.ones(2)}
    assert refused(by_hand(tmp_path, tensors)).count("\n") == 2


def test_attention_of_torch_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21 adds the update of its output twice, in the forward pass and when it merges."""
    make("convolutions", tmp_path, r=2, target_modules=["attention"])
    assert "attention.out_proj inside an adapted module" in refused(tmp_path)


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    assert "adapter_config.json is missing" in refused(tmp_path)
    by_hand(tmp_path / "inner")
    assert "subfolders do (inner)" in refused(tmp_path)
    assert "is a file" in refused(tmp_path / "inner" / "adapter_model.safetensors")
    (tmp_path / "inner" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(tmp_path / "inner")
    (tmp_path / "inner" / "adapter_config.json").write_text("{")
    (tmp_path / "inner" / "adapter_model.safetensors").write_bytes(b"")
    text = refused(tmp_path / "inner")
    assert "not valid JSON" in text
    assert "is empty" in text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert not is_adapter(tmp_path / "model")


def test_pickles_only_when_allowed(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    torch.save(stored(folder), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert "--allow-pickle" in refused(folder)
    adapter = open_adapter(str(folder), allow_pickle=True)
    assert torch.equal(update(adapter, "q.weight", torch.Size((3, 4))), torch.full((3, 4), 4.0))


def test_factors_and_tensors_are_not_mixed_up(tmp_path: Path) -> None:
    folder = by_hand(tmp_path, {"head.weight": torch.ones(2, 2)}, modules_to_save=["head"])
    adapter = open_adapter(str(folder))
    with FileTable() as table:
        with pytest.raises(ValueError, match="no low-rank update"):
            adapter.factors("head.weight", table)
        with pytest.raises(ValueError, match="read its factors"):
            adapter.tensor("q.weight", table)
