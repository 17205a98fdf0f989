from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from store.helpers_adapter import (
    ATTENTION,
    CASES,
    Made,
    applied,
    by_hand,
    copied,
    make,
    same,
    stored,
    update,
    wrap,
)
from store.helpers_store import messages
from submerge.errors import RequestError
from submerge.store import (
    Adapter,
    Add,
    FileTable,
    LowRank,
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
        name for name, part in adapter.parts.items() if isinstance(part, LowRank)
    }


def test_parts(tmp_path: Path) -> None:
    kinds = {
        "dora": ("model.layers.0.self_attn.q_proj.weight", LowRank, "DoRA"),
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


def test_experts_apart(tmp_path: Path) -> None:
    """A base that keeps each expert in tensors of its own gets a part for each of them."""
    made = make("mixtral", tmp_path, **CASES["mixtral"][1])
    apart: dict[str, torch.Tensor] = {}
    merged: dict[str, torch.Tensor] = {}
    for source, target in ((made.base, apart), (made.merged, merged)):
        for name, tensor in source.items():
            head, packed, last = name.rpartition(".mlp.experts.")
            name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            if not packed:
                target[name] = tensor
                continue
            for expert, matrix in enumerate(tensor):
                pieces = (
                    {"w2": matrix}
                    if last == "down_proj"
                    else dict(zip(("w1", "w3"), matrix.chunk(2), strict=True))
                )
                for leaf, piece in pieces.items():
                    target[f"{head}.block_sparse_moe.experts.{expert}.{leaf}.weight"] = piece
    adapter = open_adapter(str(tmp_path))
    same(applied(apart, fit_adapter(adapter, {n: tuple(t.shape) for n, t in apart.items()})), merged)


@pytest.mark.parametrize("layout", ["apart", "packed"])
@pytest.mark.parametrize("adapted", [("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)])
@pytest.mark.parametrize("inner", [8, 12, 16])
def test_experts_of_older_versions(tmp_path: Path, inner: int, adapted: tuple[str, ...], layout: str) -> None:
    """Up to PEFT 0.18, A acts on an expert's outputs: shapes tell it, and where they do not the version."""
    hidden, experts, rank = 16, 3, 2
    sizes = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    draw = torch.Generator().manual_seed(0)
    factors, wanted, base = {}, {}, {}
    for depth, leaf in enumerate(reversed(adapted)):
        out, into = sizes[leaf]
        a = torch.randn(experts * rank, out, generator=draw)
        b = torch.randn(into, rank * experts, generator=draw)
        module = "m.layers.0.mlp.experts" + ".base_layer" * depth
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        stacked = (a.view(experts, rank, out), b.view(into, rank, experts))
        wanted[leaf] = 2 * torch.einsum("ero,ire->eoi", *stacked)  # the scale is 4 / 2
    for leaf, (out, into) in sizes.items():
        update = wanted.get(leaf, torch.zeros(experts, out, into))
        if layout == "packed":
            base[f"m.layers.0.mlp.experts.{leaf}"] = update
            continue
        for expert, matrix in enumerate(update):
            pieces = [matrix] if leaf == "down_proj" else matrix.chunk(2)
            names = ["down_proj"] if leaf == "down_proj" else ["gate_proj", "up_proj"]
            for name, piece in zip(names, pieces, strict=True):
                base[f"m.layers.0.mlp.experts.{expert}.{name}.weight"] = piece
    targets = [f"mlp.experts.{leaf}" for leaf in adapted]
    tensors = {"q.lora_A.weight": torch.ones(()), "q.lora_B.weight": torch.ones(()), **factors}
    square = {leaf for leaf in adapted if len(set(sizes[leaf])) == 1}
    versions = ["0.18.1"] if square == set(adapted) else ["0.18.1", None, "0.21.2"]  # shapes go first
    for version in versions:
        folder = by_hand(tmp_path, tensors, target_parameters=targets, peft_version=version)
        shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
        adapter = fit_adapter(open_adapter(str(folder)), shapes)
        found = applied({name: torch.zeros_like(tensor) for name, tensor in base.items()}, adapter)
        same(found, base)
    if square == set(adapted):
        folder = by_hand(tmp_path, tensors, target_parameters=targets)
        assert "peft_version" in unfit(open_adapter(str(folder)), shapes)


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
    assert any("new_thing" in note for note in adapter.notes)


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
    assert isinstance(part, LowRank)
    assert part.scale == (8 if matches else 2)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        open_adapter(str(folder), **options)
    return messages(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"peft_type": "LOHA"}, "is a LOHA adapter"),
        ({"peft_type": None}, "names no peft_type"),
        ({"layer_replication": [[0, 2]]}, "other layers"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"arrow_config": {"top_k": 2}}, "Arrow"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 1}}, "MonteCLoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
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


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"k.lora_A.weight": torch.ones(2, 4)}, "k lacks its factor B"),
        ({"k.lora_B.weight": torch.ones(3, 2)}, "k lacks its factor A"),
        ({"k.weight": torch.ones(3)}, "does not account for (base_model.model.k.weight)"),
        ({"k.bias": torch.ones(3)}, "does not account for"),
        ({"q.lora_A.default.weight": torch.ones(2, 4)}, "are not known of LoRA"),
        ({"q.lora_diag": torch.ones(2)}, "are not known of LoRA"),
        ({"q.lora_magnitude_vector": torch.ones(3)}, "holds a magnitude"),
        ({"q.lora_A.weight": torch.ones(3, 4)}, "do not fit each other"),
        ({"q.lora_A.weight": torch.ones(2, 4, 3, 3)}, "impossible shapes"),
        ({"q.lora_A.weight": torch.ones(2, 0)}, "empty factors"),
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
        ({"q.lora_A.weight": torch.ones(2, 4).to(torch.float8_e4m3fn)}, "quantised or complex"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], expected: str) -> None:
    text = refused(by_hand(tmp_path, tensors))
    assert expected in text
    assert "adapter_model.safetensors" in text


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    text = refused(by_hand(tmp_path, use_qalora=True, init_lora_weights="pissa", r=0))
    assert text.count("\n") == 2
    tensors = {"k.lora_A.weight": torch.ones(2, 4), "x.weight": torch.ones(2), "q.lora_x": torch.ones(2)}
    assert refused(by_hand(tmp_path, tensors)).count("\n") == 2


def test_attention_of_torch_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21 adds the update of its output twice, in the forward pass and when it merges."""
    make("convolutions", tmp_path, r=2, target_modules=["attention"])
    assert "attention.out_proj inside an adapted module" in refused(tmp_path)


def test_parameters_of_unknown_order_are_refused(tmp_path: Path) -> None:
    pair = {f"x.{deep}lora_{f}.weight": torch.ones(2, 2) for deep in ("", "base_layer.") for f in "AB"}
    text = refused(by_hand(tmp_path, pair, target_parameters=["x.one", "x.two"]))
    assert "which factors of x belong to which of one, two" in text
    text = refused(by_hand(tmp_path, pair, target_parameters=["x.one", "x.two", "x.three"]))
    assert "holds factors for 2 parameters of x" in text


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


def unfit(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(RequestError) as caught:
        fit_adapter(adapter, shapes)
    return messages(caught.value)


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


def test_square_experts_without_a_hint_are_refused(tmp_path: Path) -> None:
    pair = {"x.lora_A.weight": torch.ones(6, 4), "x.lora_B.weight": torch.ones(4, 6)}

    def adapter_of(version: str | None) -> Adapter:
        folder = by_hand(tmp_path, pair, target_parameters=["x.down_proj"], peft_version=version)
        return open_adapter(str(folder))

    adapter = adapter_of(None)
    part = adapter.parts["x.down_proj"]
    assert isinstance(part, LowRank)
    assert (part.shape, part.stored, part.experts, part.rank) == (None, (3, 4, 4), 3, 2)
    shapes = {"q.weight": (3, 4), "x.down_proj": (3, 4, 4)}
    assert "which factor acts on which side of an expert" in unfit(adapter, shapes)
    outputs_first, inputs_first = ({**shapes, "x.gate_up_proj": shape} for shape in ((3, 8, 4), (3, 4, 8)))
    assert "peft_version" in unfit(adapter, outputs_first)
    assert "peft_version" in unfit(adapter_of("0.19.1.dev0"), outputs_first)
    wanted = {
        "0.17.1": (True, True),
        "0.18.1": (True, True),
        "0.19.0": (True, False),
        "0.19.1": (False, True),
    }
    for version, turned in wanted.items():
        for base, expected in zip((outputs_first, inputs_first), turned, strict=True):
            found = fit_adapter(adapter_of(version), base).parts["x.down_proj"]
            assert isinstance(found, LowRank)
            assert found.transposed is expected, (version, base)


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
        if isinstance(head, LowRank):  # the file's two pairs of factors are one update
            expected = made.base["model.embed_tokens.weight"]
            torch.testing.assert_close(found, expected + update(wanted, "lm_head.weight", expected.shape))


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


def test_a_configuration_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    assert open_adapter(str(folder)).rank == 2
