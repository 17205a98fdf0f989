"""Tables of a served merge: one rule for the checkpoint of `mass` and for the methods on singular vectors."""

from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, Family, architecture, read, state, write
from submerge.engine.plan import bank_bytes

POSITIONS = "vision_model.embeddings.position_embedding.weight"
TOKENS = "text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """CLIP, whose position embeddings have two dimensions, and fine-tunes of all its parameters."""
    pytest.importorskip("transformers")
    return architecture("clip", tmp_path_factory.mktemp("clip"), count=2)


def merged(family: Family, out: Path, method: str, **parameters: Any) -> dict[str, torch.Tensor]:
    recipe = {
        "merge_method": method,
        "base_model": str(family.base),
        "models": [{"model": str(path)} for path in family.tuned],
        "parameters": parameters,
    }
    return read(submerge.merge(recipe, out, settings=ROOM).out)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_checkpoint_is_the_tsv_m_merge(clip: Family, tmp_path: Path, scale: float) -> None:
    static = merged(clip, tmp_path / "static", "tsv_m", scale=scale)
    plain = merged(clip, tmp_path / "plain", "mass", scale=scale)
    base, tuned = read(clip.base), [read(path) for path in clip.tuned]
    assert static.keys() == plain.keys() == base.keys()
    for name, tensor in static.items():
        assert (plain[name] - tensor).norm() <= 1e-4 * (tensor - base[name]).norm(), name
    assert base[POSITIONS].ndim == 2
    for name in (POSITIONS, TOKENS):
        mean = sum(t[name] - base[name] for t in tuned) / len(tuned)
        torch.testing.assert_close(plain[name], base[name] + scale * mean)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "knots_ties", "ssam", "wudi"])
def test_all_methods_on_singular_vectors_take_the_mean_of_tables(
    clip: Family, tmp_path: Path, method: str
) -> None:
    parameters = {"rank": "max"} if method == "ssam" else {"scale": 1.0}
    found = merged(clip, tmp_path / "out", method, **parameters)
    base, tuned = read(clip.base), [read(path) for path in clip.tuned]
    for name in (POSITIONS, TOKENS):
        mean = sum(t[name] - base[name] for t in tuned) / len(tuned)
        torch.testing.assert_close(found[name], base[name] + mean)


def test_tables_are_kept_as_triplets_and_within_the_planned_bytes(clip: Family, tmp_path: Path) -> None:
    merged(clip, tmp_path / "out", "mass")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "bank.safetensors", framework="pt") as file:
        kept = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    shape = list(read(clip.base)[TOKENS].shape)
    half = min(shape) // 2
    assert kept[f"tasks.0.{TOKENS}.left"] == [shape[0], half]
    assert kept[f"merged.{TOKENS}"] == shape
    assert f"tasks.0.{TOKENS}.whole" not in kept
    recipe = {
        "merge_method": "mass",
        "base_model": str(clip.base),
        "models": [{"model": str(path)} for path in clip.tuned],
    }
    size = (tmp_path / "out" / "bank.safetensors").stat().st_size
    with (tmp_path / "out" / "bank.safetensors").open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert size - header <= bank_bytes(submerge.plan(recipe, ROOM)) <= 1.05 * size


def test_others_base_leaves_tables_to_the_base(clip: Family, tmp_path: Path) -> None:
    plain, base = merged(clip, tmp_path / "out", "mass", others="base"), read(clip.base)
    for name in (POSITIONS, TOKENS):
        assert torch.equal(plain[name], base[name])


def test_a_task_that_changes_one_table_alone(tmp_path: Path) -> None:
    shapes = {"model.embed_tokens.weight": (12, 8), "model.layers.0.mlp.weight": (8, 8)}
    base = state(shapes)
    first = {n: t + torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in base.items()}
    second = base | {"model.layers.0.mlp.weight": first["model.layers.0.mlp.weight"] + 1}
    family = Family(write(tmp_path / "base", base), (
        write(tmp_path / "first", first), write(tmp_path / "second", second)
    ), "Toy")  # fmt: skip
    plain = merged(family, tmp_path / "out", "mass")["model.embed_tokens.weight"]
    from safetensors.torch import load_file

    bank = load_file(tmp_path / "out" / "bank.safetensors")
    torch.testing.assert_close(
        plain - bank["merged.model.embed_tokens.weight"], base["model.embed_tokens.weight"]
    )
    assert not any(name.startswith("tasks.1.model.embed_tokens") for name in bank)
