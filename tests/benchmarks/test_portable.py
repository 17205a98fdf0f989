"""The bytes that other machines must have: models are the same everywhere, a table says what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

pytest.importorskip("psutil")

from benchmarks.portable.digests import table
from benchmarks.portable.golden import DTYPES, data_digest, golden_recipes, make_golden

import submerge
from submerge.methods import METHODS

MADE = {
    "base": "926e475e78d3e14b",
    "a": "8f4b9d0962dbc8e8",
    "b": "ee48bcc75bcad6a8",
    "c": "839edb58970676fc",
}
"""The digest of each golden model's file."""


def test_golden_models_have_their_bytes_and_merge(tmp_path: Path) -> None:
    make_golden(tmp_path)
    made = {
        folder.name: xxhash.xxh3_64_hexdigest((folder / "model.safetensors").read_bytes())
        for folder in sorted(tmp_path.iterdir())
    }
    assert made == MADE
    recipes = {(name, dtype): recipe for name, dtype, recipe in golden_recipes(tmp_path)}
    streamed = {name for name, method in METHODS.items() if method.matrix is None}
    assert recipes.keys() == {(name, dtype) for name in streamed for dtype in DTYPES}
    submerge.merge(recipes["ties", "bfloat16"], tmp_path / "out")
    assert len(data_digest(tmp_path / "out")) == 32


def test_the_table_says_what_differs() -> None:
    ties = dict.fromkeys(DTYPES, "1" * 32)
    other = dict.fromkeys(DTYPES, "2" * 32)
    digests = {
        "numba, 1 worker": {"ties": ties, "sce": ties},
        "numpy, 1 worker": {"ties": ties, "sce": other},
    }
    lines = list(table(digests, {"ties": ties, "sce": other}))
    shown = " | ".join(["`111111111111`"] * 3)
    assert lines[2:] == [f"| `ties` | {shown} | same | yes |", f"| `sce` | {shown} | **other** | **no** |"]
    assert list(table(digests, {}))[2].endswith("| same | – |")
