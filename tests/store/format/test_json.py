"""JSON that is read: what the standard allows comes through, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.errors import RequestError
from submerge.store.format import read_json, strict_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)


@given(JSON, st.booleans())
def test_what_json_writes_is_read(value: Any, ascii_only: bool) -> None:
    assert strict_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"x": {"a": 1, "a": 1}}', "the key 'a' occurs twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (rb'{"\ud800": 1}', "surrogates not allowed"),
        ('{"ä": 1}'.encode("latin-1"), "can't decode byte"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_json_does_not_allow_is_refused(raw: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        strict_json(raw)


def test_a_file_is_an_object_or_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    for content, text in (("[1]", "holds a JSON list"), ("{", "is not valid JSON"), (None, "cannot be read")):
        file.unlink()
        if content is not None:
            file.write_text(content)
        with pytest.raises(RequestError) as error:
            read_json(file, "mend it")
        assert str(error.value).startswith(f"{file}: {text}")
        assert str(error.value).endswith(" — mend it")
