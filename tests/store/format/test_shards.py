"""Which tensor goes into which file, and the index of several files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.store import (
    DTYPES,
    index_json,
    plan_shards,
)


def test_names_and_greedy_order() -> None:
    entries = [(name, "F32", (4,)) for name in "cab"] + [("big", "F32", (100,)), ("end", "F32", (1,))]
    shards = plan_shards(entries, 32)
    assert [shard.file for shard in shards] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert [list(shard.entries) for shard in shards] == [["c", "a"], ["b"], ["big"], ["end"]]
    assert [shard.file for shard in plan_shards(entries, 10**6)] == ["model.safetensors"]
    assert plan_shards([], 10)[0].entries == {}
    assert plan_shards(entries, 10**6, stem="diffusion")[0].file == "diffusion.safetensors"
    with pytest.raises(ValueError, match="twice"):
        plan_shards([("a", "F32", (1,)), ("a", "F32", (1,))], 10)
    with pytest.raises(ValueError, match="positive"):
        plan_shards(entries, 0)


@given(
    st.lists(st.tuples(st.sampled_from(["F32", "BF16", "U8", "F64"]), st.integers(0, 9)), max_size=12),
    st.integers(1, 64),
)
def test_plans_cover_everything_once_and_aligned(rows: list[tuple[str, int]], max_bytes: int) -> None:
    entries = [(f"t{number}", code, (count,)) for number, (code, count) in enumerate(rows)]
    shards = plan_shards(entries, max_bytes)
    names = [name for shard in shards for name in shard.entries]
    assert sorted(names) == sorted(name for name, _, _ in entries)
    for shard in shards:
        data = sum(entry.nbytes for entry in shard.entries.values())
        position = len(shard.header)
        for entry in shard.entries.values():
            assert entry.offset == position
            assert entry.offset % DTYPES[entry.dtype].itemsize == 0
            position += entry.nbytes
        assert position == shard.size
        assert data <= max_bytes or sum(entry.nbytes > 0 for entry in shard.entries.values()) == 1


def test_index() -> None:
    shards = plan_shards([("b", "F32", (4,)), ("a", "F32", (4,))], 16)
    index = json.loads(index_json(shards) or b"")
    assert index["metadata"]["total_size"] == 32
    assert list(index["weight_map"]) == ["a", "b"]
    assert index["weight_map"]["b"] == "model-00001-of-00002.safetensors"
    assert index_json(shards[:1]) is None
