from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from store.helpers_store import SHARED, messages, raw_file, record, tensors
from submerge.errors import RequestError
from submerge.store import TensorEntry, read_header


def refused(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read_header(path)
    text = messages(caught.value)
    assert str(path) in text
    return text


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    made = tensors()
    path = tmp_path / "x.safetensors"
    save_file(made, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.size == path.stat().st_size
    assert set(header.entries) == set(made)
    offsets = [entry.offset for entry in header.entries.values()]
    assert offsets == sorted(offsets)
    data = path.read_bytes()
    for name, tensor in made.items():
        entry = header.entries[name]
        assert entry.shape == tuple(tensor.shape)
        assert entry.numel == tensor.numel()
        assert entry.file == path
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert data[entry.offset : entry.offset + entry.nbytes] == raw


def test_empty_header_and_scalars_and_zero_sizes(tmp_path: Path) -> None:
    assert read_header(raw_file(tmp_path / "a", {})).entries == {}
    path = tmp_path / "b"
    save_file({"s": torch.tensor(1.5), "z": torch.zeros(0, 5), "y": torch.zeros(3, 0)}, path)
    header = read_header(path)
    assert header.entries["z"].nbytes == 0
    assert header.entries["s"].shape == ()


@pytest.mark.parametrize(
    ("table", "data", "text"),
    [
        (b"[1]", b"", "does not start with"),
        (b"{nonsense", b"", "not valid JSON"),
        (b'{"a": NaN}', b"", "NaN"),
        (b'{"\xff": 1}', b"", "not valid JSON"),
        (b'{"\\ud800": 1}', b"", "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', b"", "twice"),
        (b'{"a":' * 5000, b"", "deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
        ({"a": 1}, b"", "not an object"),
        ({"a": {"dtype": "F32"}}, b"", "fields"),
        ({"a": record() | {"more": 1}}, b"", "fields"),
        ({"a": record("F99")}, bytes(8), "unknown dtype 'F99'"),
        ({"a": record(["F32"])}, bytes(8), "unknown dtype"),  # type: ignore[arg-type]
        ({"a": record(shape=[-2])}, bytes(8), "shape"),
        ({"a": record(shape=[True, 2])}, bytes(8), "shape"),
        ({"a": record(shape=[2.0])}, bytes(8), "shape"),
        ({"a": record(shape="2")}, bytes(8), "shape"),
        ({"a": record(shape=[2**63])}, bytes(8), "shape"),
        ({"a": record(shape=[2**62] * 60)}, bytes(8), "possible number"),
        ({"a": record(shape=[1] * 65)}, bytes(8), "65 dimensions"),
        ({"a": record(shape=[3])}, bytes(8), "needs 12 bytes"),
        ({"a": record("F4", shape=[3])}, bytes(8), "possible number"),
        ({"a": record(offsets=[8, 0])}, bytes(8), "backwards"),
        ({"a": record(offsets=[0])}, bytes(8), "data_offsets"),
        ({"a": record(offsets=[False, 8])}, bytes(8), "data_offsets"),
        ({"a": record(offsets=[-8, 0])}, bytes(8), "data_offsets"),
        ({"a": record(offsets=[0, 2**70])}, bytes(8), "data_offsets"),
        ({"a": record()}, bytes(7), "truncated"),
        ({"a": record()}, bytes(9), "1 bytes after"),
        ({"a": record(offsets=[8, 16])}, bytes(16), "hole"),
        ({"a": record(), "b": record(offsets=[4, 12])}, bytes(12), "overlaps"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": ["a"]}, b"", "__metadata__"),
    ],
)
def test_lies_are_refused(tmp_path: Path, table: object, data: bytes, text: str) -> None:
    found = refused(raw_file(tmp_path / "lie.safetensors", table, data))
    assert text in found
    if isinstance(table, dict) and "a" in table:
        assert "tensor " in found or "after" in found


def test_all_problems_come_together_and_are_capped(tmp_path: Path) -> None:
    table = {f"t{number}": record("F99") for number in range(50)}
    with pytest.raises(RequestError) as caught:
        read_header(raw_file(tmp_path / "x", table, bytes(8)))
    assert len(caught.value.problems) == 21
    assert "30 more" in messages(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"1234", "4 bytes"),
        (struct.pack("<Q", 100) + b"{}", "truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "limit"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert text in refused(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "folder" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    assert "regular" in refused(tmp_path / "pipe")
    locked = tmp_path / "locked"
    locked.touch(0o000)
    if os.geteuid() != 0:
        assert "cannot be read" in refused(locked)


GOOD = json.dumps(
    {"__metadata__": {"format": "pt"}, "a": record(shape=[2]), "b": record("BF16", [2, 2], [8, 16])}
).encode()


@settings(SHARED, max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 30),
)
def test_mutated_files_are_read_or_refused(tmp_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(struct.pack("<Q", len(GOOD)) + GOOD + bytes(16))
    for place, value in edits:
        content[place % len(content)] = value
    path = tmp_path / "mutated"
    path.write_bytes(bytes(content[: len(content) - max(0, cut - 20)]))
    try:
        header = read_header(path)
    except RequestError as error:
        messages(error).encode("utf-8")
        return
    assert all(entry.offset + entry.nbytes <= header.size for entry in header.entries.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@SHARED
@given(
    table=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        JSON | st.fixed_dictionaries({"dtype": st.just("F32") | JSON, "shape": JSON, "data_offsets": JSON}),
        max_size=3,
    )
)
def test_any_json_is_read_or_refused(tmp_path: Path, table: dict[str, object]) -> None:
    path = raw_file(tmp_path / "any", table, bytes(8))
    try:
        read_header(path)
    except RequestError as error:
        messages(error).encode("utf-8")


def test_entries_are_small_values() -> None:
    entry = TensorEntry("a", "F32", (2, 3), None, 0, 24)
    assert entry.numel == 6
    assert not hasattr(entry, "__dict__")
