"""Records of finished ranges, as lines of the journal."""

import json

import pytest

from submerge.engine.work import RangeRecord

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
