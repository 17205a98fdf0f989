"""Headers that are written: the library reads them, and what cannot be written is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from store.helpers_store import SHARED
from submerge.store import DTYPES, encode_header, read_header

CODES = [code for code, dtype in DTYPES.items() if dtype.supported]
ENTRIES = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(CODES), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=6,
)


@SHARED
@given(entries=ENTRIES, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_encoded_headers_round_trip_and_the_library_reads_them(
    tmp_path: Path,
    entries: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    listed = [(name, code, shape) for name, (code, shape) in entries.items()]
    header, offsets = encode_header(listed, metadata)
    assert len(header) % 8 == 0
    sizes = [DTYPES[code].nbytes(shape) or 0 for _, code, shape in listed]
    path = tmp_path / "round.safetensors"
    path.write_bytes(header + bytes(sum(sizes)))
    found = read_header(path)
    assert found.metadata == metadata
    assert {name: entry.offset for name, entry in found.entries.items()} == offsets
    assert {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()} == entries
    with safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == set(entries)
        for name, code, shape in listed:
            tensor = opened.get_tensor(name)
            assert tensor.dtype == DTYPES[code].torch
            assert tuple(tensor.shape) == shape
    assert set(load_file(path)) == set(entries)


def test_encode_refuses_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="twice"):
        encode_header([("a", "F32", (1,)), ("a", "F32", (1,))])
    with pytest.raises(ValueError, match="unknown dtype"):
        encode_header([("a", "X", (1,))])
    with pytest.raises(ValueError, match="impossible"):
        encode_header([("a", "F4", (1,))])
    with pytest.raises(ValueError, match="reserved"):
        encode_header([("__metadata__", "F32", (1,))])
