"""States with blocks of moments: the merge by the formula, and the same whatever their history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _adapters import same_state
from _models import ROOM, quiet_transformers
from calibrate.helpers_plain import factors
from continual.conftest import Tasks, save_quietly
from continual.test_continual import RIDGE, exported, grown, inputs_of, products
from submerge.algebra import BlockMoment
from submerge.continual import MeasuredTask

WIDTH, BLOCK = 288, 144
NAMES = ("law", "chess")


@pytest.fixture(scope="module")
def wide(made: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    """A base of more inputs than a block has, and two tasks."""
    import peft

    t, root = quiet_transformers(), tmp_path_factory.mktemp("wide")
    config = t.LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    shutil.copytree(made.base, root / "base")
    torch.manual_seed(0)
    t.LlamaForCausalLM(config).double().save_pretrained(root / "base")
    for name in NAMES:
        model = t.LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float64)
        targets = ["q_proj", "v_proj", "down_proj"]
        lora = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
        save_quietly(peft.get_peft_model(model, lora), root / name)
        shutil.copy(made.root / f"{name}.jsonl", root)
    return Tasks(root)


def blocks_of(rows: torch.Tensor) -> torch.Tensor:
    """Return the diagonal blocks of Xᵀ X / N with the ridge, [n, n], zero elsewhere."""
    c = rows.T @ rows / len(rows)
    size = BLOCK if len(c) == WIDTH else len(c)
    of_block = torch.arange(len(c)) // size
    c = c * (of_block[:, None] == of_block)
    return c + RIDGE * c.trace() / len(c) * torch.eye(len(c), dtype=c.dtype)


def test_blocks_of_another_size_are_refused(wide: Tasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", wide.base, statistics="block")
    maps = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    names = {name: name for name in (f"model.layers.0.{one}" for one in maps)}

    def measured(block: int, small: str) -> MeasuredTask:
        rows = {name: torch.randn(9, 16 if "down" in name else WIDTH) for name in names}
        blocks = {name: (4 if small == "block" else None) if "down" in name else block for name in names}
        drawn = ((name, BlockMoment.of(rows[name], blocks[name])) for name in names)
        return MeasuredTask(names, drawn, 3, "some")

    model = wide.of("law")[1]
    with pytest.raises(
        submerge.RequestError, match=r"is a block \(of 96\) one .* give a block \(of 144\) one of"
    ):
        state.add("law", model, measured(96, "full"))
    with pytest.raises(
        submerge.RequestError, match=r"is a block \(of 4\) one of 16 inputs — give a full one"
    ):
        state.add("law", model, measured(BLOCK, "block"))
    state.add("law", model, measured(BLOCK, "full"))
    assert state.export(tmp_path / "out").rank == 3


@pytest.mark.parametrize("keep", ["full", "none"])
def test_the_export_is_the_batch_solution(wide: Tasks, tmp_path: Path, keep: str) -> None:
    state = grown(wide, tmp_path / "state", *NAMES, statistics="block", keep=keep)
    rows = {name: inputs_of(wide, name) for name in NAMES}
    wanted = {}
    for path in factors(wide.root / "law"):
        moments = {name: blocks_of(rows[name][path]) for name in NAMES}
        products = {name: b @ a for name in NAMES for a, b in [factors(wide.root / name)[path]]}
        weighted = sum(products[name] @ moments[name] for name in NAMES)
        wanted[path] = torch.linalg.solve(sum(moments.values()), weighted.T).T
    same_state(plain(state, tmp_path / "out"), wanted, 1e-6)
    manifest = json.loads((tmp_path / "state/state.json").read_text())
    assert manifest["version"] == 4


def plain(state: submerge.Continual, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    return products(state.export(out, **options).out)


def test_a_block_is_that_of_a_recipe(wide: Tasks, tmp_path: Path) -> None:
    options = {"statistics": "block", "ridge": 0.1, "missing": "skip", "offdiag": 0.9}
    state = grown(wide, tmp_path / "state", *NAMES, **options)
    state.export(tmp_path / "out", form="checkpoint", weights={"law": 0.5}, settings=ROOM)
    models = [{"model": wide.of(name)[1], "data": wide.of(name)[2]} for name in NAMES]
    models[0]["parameters"] = {"weight": 0.5}
    recipe = {"merge_method": "many", "base_model": wide.base, "models": models, "parameters": options}
    submerge.merge(recipe, tmp_path / "merged", settings=ROOM)
    base, found, wanted = (
        load_file(folder / "model.safetensors")
        for folder in (Path(wide.base), tmp_path / "out", tmp_path / "merged")
    )
    same_state({n: found[n] - base[n] for n in base}, {n: wanted[n] - base[n] for n in base}, 1e-4)


def test_any_history(wide: Tasks, tmp_path: Path) -> None:
    both = grown(wide, tmp_path / "both", *NAMES, statistics="block")
    wanted = exported(both, tmp_path / "wanted")
    other = grown(wide, tmp_path / "other", *reversed(NAMES), statistics="block")
    assert exported(other, tmp_path / "a") == wanted
    halves = [grown(wide, tmp_path / name, name, statistics="block") for name in NAMES]
    joined = submerge.Continual.join(tmp_path / "law", tmp_path / "chess", tmp_path / "joined")
    assert exported(joined, tmp_path / "b") == wanted
    both.remove("law")
    assert exported(both, tmp_path / "c") == exported(halves[1], tmp_path / "d")


def test_sums_of_blocks(wide: Tasks, tmp_path: Path) -> None:
    options = {"statistics": "block", "keep": "none"}
    whole = grown(wide, tmp_path / "whole", *NAMES, **options)
    for name in NAMES:
        grown(wide, tmp_path / name, name, **options)
    joined = submerge.Continual.join(tmp_path / "law", tmp_path / "chess", tmp_path / "joined")
    same_state(plain(joined, tmp_path / "a"), plain(whole, tmp_path / "b"), 1e-6)
    _, model, data = wide.of("law")
    whole.remove("law", model=model, data=data)
    same_state(plain(whole, tmp_path / "c"), products(wide.root / "chess"), 1e-6)


def test_they_take_less_room(wide: Tasks, tmp_path: Path) -> None:
    kinds = ("diag", "block", "full")
    states = [grown(wide, tmp_path / kind, "law", statistics=kind) for kind in kinds]
    diag, block, full = (state.record("law").moment_bytes for state in states)
    assert diag < block < full


def test_eigenpairs_are_of_full_moments(wide: Tasks, tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="leading eigenpairs need full statistics, not block"):
        submerge.Continual.begin(tmp_path / "state", wide.base, statistics="block", energy=0.9)
