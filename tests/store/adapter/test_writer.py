from __future__ import annotations

import json
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _models import quiet_transformers
from store.helpers_adapter import CASES, MODELS, copied, loaded, make, same, stored, wrap
from store.helpers_store import messages
from submerge.errors import RequestError, WorkError
from submerge.store import AdapterWriter, FileTable, LowRankPart, open_adapter


def factors(m: int, n: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(m, rank, generator=draw), torch.randn(rank, n, generator=draw)


# names, ranks, and how the parameter is stored
MODULES: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
    "llama": [
        ("model.layers.0.self_attn.q_proj.weight", 3, {}),
        ("model.layers.1.mlp.down_proj.weight", 1, {}),
        ("model.embed_tokens.weight", 2, {"kind": "embedding"}),
        ("lm_head.weight", 4, {}),
    ],
    "gpt2": [
        ("transformer.h.0.attn.c_attn.weight", 2, {"transposed": True}),
        ("transformer.h.1.attn.c_proj.weight", 5, {"transposed": True}),
        ("transformer.wpe.weight", 1, {"kind": "embedding"}),
    ],
    "mixtral": [
        ("model.layers.0.mlp.experts.gate_up_proj", 2, {"kind": "parameter"}),
        ("model.layers.0.mlp.experts.down_proj", 3, {"kind": "parameter"}),
        ("model.layers.1.mlp.experts.down_proj", 1, {"kind": "parameter"}),
        ("model.layers.1.mlp.gate.weight", 2, {"kind": "parameter"}),
        ("model.layers.1.self_attn.q_proj.weight", 2, {}),
    ],
    "gpt-oss": [
        ("model.layers.0.mlp.experts.gate_up_proj", 2, {"kind": "parameter", "transposed": True}),
        ("model.layers.0.mlp.experts.down_proj", 3, {"kind": "parameter", "transposed": True}),
    ],
    "convolutions": [
        ("flat.weight", 2, {"kernel": (3,)}),
        ("plane.weight", 3, {"kernel": (3, 2)}),
        ("point.weight", 1, {"kernel": (1, 1)}),
        ("head.weight", 2, {}),
    ],
}


Given = dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]


def given_factors(kind: str, base: dict[str, torch.Tensor]) -> Given:
    found = {}
    for seed, (name, rank, how) in enumerate(MODULES[kind]):
        weight = base[name] if how.get("kind") == "parameter" else base[name].flatten(1)
        draw = torch.Generator().manual_seed(seed)
        left = torch.randn(*weight.shape[:-1], rank, generator=draw)
        right = torch.randn(*weight.shape[:-2], rank, weight.shape[-1], generator=draw)
        found[name] = (left, right, how)
    return found


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize("kind", MODULES)
def test_peft_reads_what_was_written(kind: str, rank: int | None, tmp_path: Path) -> None:
    base = copied(MODELS[kind](quiet_transformers()))
    made = given_factors(kind, base)
    with AdapterWriter(tmp_path / "a") as writer:
        for name, (left, right, how) in made.items():
            writer.add(name, left, right, **how)
        folder = writer.finish(rank)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    expected = dict(base)
    for name, (left, right, _) in made.items():
        expected[name] = base[name] + (left @ right).reshape(base[name].shape)
    same(loaded(kind, folder, base), expected)


@pytest.mark.parametrize(
    "case",
    [
        "linear",
        "rslora",
        "patterns",
        "embedding",
        "whole",
        "conv1d",
        "convolutions",
        "mixtral",
        "qwen3-moe",
        "gpt-oss",
    ],
)
def test_an_adapter_comes_back_exactly(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = make(kind, tmp_path / "a", **options)
    adapter = open_adapter(str(tmp_path / "a"))
    with AdapterWriter(tmp_path / "b") as writer, FileTable() as table:
        for name, part in adapter.parts.items():
            if isinstance(part, LowRankPart):
                how = {"kind": part.kind, "transposed": part.transposed, "kernel": part.kernel}
                writer.add(name, *adapter.factors(name, table), **how)  # type: ignore[arg-type]
            else:
                writer.save(name, adapter.tensor(name, table))
        writer.finish()
    again = open_adapter(str(tmp_path / "b"))
    assert again.rank == adapter.rank
    with FileTable() as table:
        for name, part in adapter.parts.items():
            if not isinstance(part, LowRankPart):
                continue
            first, second = (a.factors(name, table) for a in (adapter, again))
            for old, new, dim in zip(first, second, (-1, -2), strict=True):
                assert torch.equal(old, new.narrow(dim, 0, old.shape[dim]))
                assert not new.narrow(dim, old.shape[dim], new.shape[dim] - old.shape[dim]).any()
    same(loaded(kind, tmp_path / "b", made.base), made.merged)


def test_the_configuration_is_plain(tmp_path: Path) -> None:
    with AdapterWriter(tmp_path) as writer:
        writer.add("b.q.weight", *factors(3, 4, 2))
        writer.add("a.k.weight", *factors(3, 4, 1))
        writer.finish(base="org/base", base_revision="v1", task_type="CAUSAL_LM")
    adapter = open_adapter(str(tmp_path))
    assert (adapter.base, adapter.base_revision) == ("org/base", "v1")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 2, False)
    assert config["target_modules"] == ["a.k", "b.q"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert (config["inference_mode"], config["modules_to_save"], config["fan_in_fan_out"]) == (
        True,
        None,
        False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import peft

        read = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, peft.LoraConfig)
    assert list(stored(tmp_path)) == sorted(stored(tmp_path))
    assert {tuple(tensor.shape) for tensor in stored(tmp_path).values()} == {(2, 4), (3, 2)}


@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=st.integers(0, 100),
    threads=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_bytes_do_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[int], seed: int, threads: int, dtype: str
) -> None:
    made = [(f"m.{i}.weight", *factors(3, 5, rank, i)) for i, rank in enumerate(ranks)]
    results = []
    for shuffled in (False, True):
        folder = tmp_path_factory.mktemp("a")
        jobs = list(made)
        with AdapterWriter(folder) as writer:
            if shuffled:
                random.Random(seed).shuffle(jobs)
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda job, w=writer: w.add(*job), jobs))
            else:
                for job in jobs:
                    writer.add(*job)
            assert writer.rank == max(ranks)
            writer.finish(dtype=dtype)
        results.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert results[0] == results[1]
    adapter = open_adapter(str(folder))
    with FileTable() as table:
        for name, left, right in made:
            part = adapter.parts[name]
            assert isinstance(part, LowRankPart)
            assert (part.rank, part.scale) == (max(ranks), 1.0)
            torch.testing.assert_close(
                adapter.factors(name, table)[0][:, : left.shape[1]],
                left.to(getattr(torch, dtype)).float(),
                rtol=0,
                atol=0,
            )
            assert right.shape[0] == left.shape[1]


def test_whole_parameters(tmp_path: Path) -> None:
    _, base = wrap("llama", r=1, target_modules=["q_proj"])
    name, head = "model.layers.0.self_attn.q_proj.weight", torch.randn(64, 16)
    with AdapterWriter(tmp_path) as writer:
        left, right = factors(16, 16, 2)
        writer.add(name, left, right)
        writer.save("lm_head.weight", head)
        writer.finish()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
    same(loaded("llama", tmp_path, base), base | {name: base[name] + left @ right, "lm_head.weight": head})


def test_no_module_to_save_is_inside_of_another(tmp_path: Path) -> None:
    with AdapterWriter(tmp_path) as writer:
        writer.add("q.weight", *factors(3, 4, 2))
        for name in ("head.weight", "head.dense.weight", "header.weight", "head.dense.inner.bias"):
            writer.save(name, torch.ones(2, 2))
        writer.finish(task_type="CAUSAL_LM")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["head", "header"]


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path) -> None:
    def fail() -> None:
        with AdapterWriter(tmp_path) as writer:
            writer.add("q.weight", *factors(3, 4, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with AdapterWriter(tmp_path) as writer:
        with pytest.raises(RequestError) as caught:
            writer.finish(dtype="int8")
        assert "no update to write" in messages(caught.value)
        assert "int8 is no type" in messages(caught.value)
        with pytest.raises(RequestError, match="no module's weight"):
            writer.add("experts.gate_up_proj", *factors(3, 4, 2))
        writer.add("q.weight", *factors(3, 4, 2))
        with pytest.raises(ValueError, match="twice"):
            writer.add("q.weight", *factors(3, 4, 2))
        with pytest.raises(ValueError, match="do not fit"):
            writer.add("k.weight", torch.ones(3, 2), torch.ones(3, 4))
        with pytest.raises(RequestError, match="rank 1 is too small for factors of rank 2"):
            writer.finish(1)
        for leaf in ("one", "two"):
            writer.add(f"x.{leaf}", *factors(3, 4, 1), kind="parameter")
        with pytest.raises(RequestError, match="in which order x defines one, two is not known"):
            writer.finish()


def test_values_too_large(tmp_path: Path) -> None:
    with AdapterWriter(tmp_path) as writer:
        writer.add("v.weight", torch.full((3, 1), 1e5), torch.ones(1, 4))
        with pytest.raises(WorkError, match="too large for torch"):
            writer.finish(dtype="float16")
        assert not any(path.name.startswith("adapter") for path in tmp_path.iterdir())
        writer.finish(dtype="bfloat16")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    writer = AdapterWriter(tmp_path)
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(WorkError, match="free some space"):
        writer.add("q.weight", *factors(3, 4, 2))
    writer.close()
