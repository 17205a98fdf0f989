"""The same recipe gives the same bytes, whatever the threads, the memory, the shards and the chunks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import submerge
from _models import ROOM, Family, contents, perturbed, read, state, write
from _support import case_of
from submerge.methods import METHODS

SHAPES = {
    "model.embed_tokens.weight": (400, 130),
    "model.layers.0.mlp.weight": (130, 401),
    "model.layers.0.norm.weight": (130,),
    "model.layers.1.mlp.weight": (130, 401),
    "model.layers.1.conv.weight": (7, 3, 5, 11),
    "model.layers.1.norm.weight": (130,),
    "model.scale": (),
    "model.empty": (0, 5),
}

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {},
    "passthrough": {"scale": 0.3},
    "task_arithmetic": {"lambda": 0.7},
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05},
    "dare_linear": {"density": 0.4, "rescale": False},
    "dare_ties": {"density": 0.4, "variant": "paper"},
    "della": {"density": 0.5, "epsilon": 0.2, "rescale": False},
    "dare_ties rescaled": {"density": 0.4},
    "slerp": {"t": 0.3},
    "nuslerp": {"nuslerp_flatten": False},
    "nuslerp columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    "karcher": {},
    "multislerp": {},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
    "ram": {"epsilon": 0.01},
    "ramplus_tl": {"epsilon": 0.01},
    "model_stock": {"filter_wise": True},
    "sce": {"select_topk": 0.3},
    "cat": {"scale": 0.5},
    "knots_ties": {"density": 0.3},
    "tsv_m": {},
    "iso_c": {},
    "iso_cts": {},
    "wudi": {},
    "ssam": {"rank": 20, "residual": 0.1},
}
"""Options of methods, by their names and a word for which they are; those of all others are their cases'."""
ELEMENTWISE = list(RECIPES)[:9]
RECIPES |= {name: dict(case_of(name).options) for name in METHODS if name not in RECIPES}

Merge = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("models")
    base = state(SHAPES)
    base["model.position_ids"] = torch.arange(30)
    tuned = [perturbed(base, i) for i in range(3)]
    tuned[1] = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in tuned[1].items()}
    folders = tuple(write(root / f"tuned{i}", t, shards=1 + i) for i, t in enumerate(tuned))
    return Family(write(root / "base", base), folders, "Toy")


@pytest.fixture
def merge(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    count = iter(range(1000))

    def run(name: str, chunk: int = 1, task: int = 1, **settings: Any) -> dict[str, bytes]:
        monkeypatch.setattr("submerge.engine.plan.tensors._tensor.CHUNK_VALUES", chunk)
        monkeypatch.setattr("submerge.engine.plan.tensors._tensor.RANGE_ELEMENTS", task)
        method = name.partition(" ")[0]
        weight = [0.5, 0.3, 0.7]
        weighted = METHODS[method].option("weight") is not None
        models = [
            {"model": str(t), **({"parameters": {"weight": w}} if weighted else {})}
            for t, w in zip(family.tuned, weight, strict=True)
        ][: case_of(method).models]
        options = {key: value for key, value in RECIPES[name].items() if key != "weight"}
        with_base = {} if method in ("linear", "passthrough") else {"base_model": str(family.base)}
        recipe = {
            "merge_method": method, "models": models, "parameters": options, "seed": 7, **with_base
        }  # fmt: skip
        out = tmp_path / f"out{next(count)}" / "merged"
        return contents(submerge.merge(recipe, out, settings=replace(ROOM, **settings)).out)

    return run


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Return the files that are not the same, with their tensors that differ, and by how much at most."""
    found = []
    for file in sorted(file for file in one.keys() | other.keys() if one.get(file) != other.get(file)):
        found.append(file)
        if file.endswith(".safetensors") and file in one and file in other:
            ours, theirs = load(one[file]), load(other[file])
            found += [
                f"{name}: {(ours[name].double() - theirs[name].double()).abs().max().item()}"
                for name in ours
                if not torch.equal(ours[name], theirs[name])
            ]
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_threads_and_memory_do_not_matter(name: str, merge: Merge) -> None:
    alone = merge(name, threads=1)
    for settings in ({"threads": 2}, {"threads": 4}, {"max_memory": 3 * 10**9}):
        assert differing(merge(name, **settings), alone) == [], settings


def test_what_differs_is_told_by_its_tensor() -> None:
    one, other = ({"a.safetensors": save({"w": torch.tensor([1.0, w])}), "b": b"b"} for w in (2.0, 2.5))
    assert differing(one, one) == []
    assert differing(one, other) == ["a.safetensors", "w: 0.5"]
    assert differing(one, {"b": b"c"}) == ["a.safetensors", "b"]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_chunks_do_not_matter_where_no_sum_crosses_them(name: str, merge: Merge) -> None:
    first, *others = (
        merge(name, chunk=chunk, task=task)["model.safetensors"]
        for chunk, task in ((1, 1), (1, 3 << 13), (1 << 18, 1 << 21))
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", ["ties", "dare_ties rescaled", "karcher"])
def test_shards_do_not_matter(name: str, merge: Merge, tmp_path: Path, family: Family) -> None:
    whole = merge(name)
    split = merge(name, shard_size=100_000)
    files = [f for f in split if f.endswith(".safetensors")]
    assert len(files) > 2
    assert "model.safetensors.index.json" in split
    assert "model.safetensors" not in split
    folder = tmp_path / "again"
    for where, found in (("one", whole), ("many", split)):
        for file, data in found.items():
            (folder / where / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / where / file).write_bytes(data)
    one, many = read(folder / "one"), read(folder / "many")
    assert set(one) == set(many) == set(read(family.base))
    assert all(torch.equal(one[n], many[n]) for n in one)


def test_a_seed_changes_what_is_random(family: Family, tmp_path: Path) -> None:
    recipe = family.recipe("dare_linear", {"density": 0.5})
    outs = [
        contents(submerge.merge(recipe | {"seed": seed}, tmp_path / str(i) / "m", settings=ROOM).out)
        for i, seed in enumerate((1, 1, 2))
    ]
    assert outs[0] == outs[1]
    assert outs[0]["model.safetensors"] != outs[2]["model.safetensors"]


def test_the_order_of_models_does_not_matter_to_a_mean(family: Family, tmp_path: Path) -> None:
    recipe = family.recipe("linear")
    del recipe["base_model"]
    there = read(submerge.merge(recipe, tmp_path / "a", settings=ROOM).out)
    recipe["models"].reverse()
    back = read(submerge.merge(recipe, tmp_path / "b", settings=ROOM).out)
    for name, value in there.items():
        torch.testing.assert_close(value.double(), back[name].double(), rtol=2**-7, atol=1e-3)


def test_files_and_memory_give_the_same_values(family: Family, tmp_path: Path) -> None:
    recipe = family.recipe("ties", {"density": 0.3})
    on_disk = read(submerge.merge(recipe, tmp_path / "a", settings=ROOM).out)
    in_memory = submerge.merge_state_dicts(
        [read(t) for t in family.tuned], base=read(family.base), method="ties", density=0.3, weight=0.5
    )
    assert set(on_disk) == set(in_memory)
    for name, value in on_disk.items():
        assert torch.equal(value, in_memory[name]), name
