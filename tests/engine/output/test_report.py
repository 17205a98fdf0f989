"""The report of a merge as plain data."""

import json
from pathlib import Path

import pytest

from submerge.engine import MergeReport


def test_it_is_plain_data() -> None:
    report = MergeReport(
        out=Path("out"), seconds=2.0, bytes_read=300, bytes_written=100, reading=0.5, writing=0.25,
        peak_memory_bytes=1, workers=2, tensors={"merge": 3}, resumed=0, nonfinite={}, differs={},
        warnings=("look",),
    )  # fmt: skip
    told = json.loads(json.dumps(report.to_dict()))
    assert told["out"] == "out"
    assert told["tensors"] == {"merge": 3}
    assert told["warnings"] == ["look"]
    assert told["rate"] == report.rate == pytest.approx(200.0)
