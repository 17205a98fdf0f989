"""Records of finished tasks, and digests of files and of what is made of blocks."""

import json
from pathlib import Path

import pytest
import xxhash

from submerge.engine.work import RangeRecord
from submerge.store import file_digest, joined

RECORDS = [
    RangeRecord(0, 0, "aa", []),
    RangeRecord(3, 1, "aa", ["bb", "cc"], {-1: 2, 0: 5}, [1], {"rank": 3, "kept": 0.5}, "dd"),
    RangeRecord(3, 2, "aa", ["bb"], differs=[0, 2]),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_comes_back_from_its_line(record: RangeRecord) -> None:
    assert RangeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_line_has_no_empty_fields() -> None:
    assert set(RECORDS[0].to_json()) == {"t", "k", "out", "in"}


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == xxhash.xxh3_128(content).hexdigest()


def test_the_digest_of_blocks_depends_on_each_and_on_their_order() -> None:
    one, two = (xxhash.xxh3_128(text).hexdigest() for text in (b"one", b"two"))
    assert joined([one]) == one
    assert joined([one, two]) == xxhash.xxh3_128(bytes.fromhex(one + two)).hexdigest()
    assert len({joined(blocks) for blocks in ([one, two], [two, one], [one, one], [one, two, two])}) == 4
