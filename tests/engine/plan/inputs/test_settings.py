"""Settings of a run: what they are by default, and what is out of range."""

from typing import Any

import pytest

import submerge


def test_threads_are_the_workers() -> None:
    assert submerge.Settings(threads=3).workers == 3
    assert submerge.Settings().workers >= 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threads": 0}, "--threads must be at least 1; found 0"),
        ({"threads": "2"}, "threads is a whole number; found '2'"),
        ({"threads": 1.5}, "threads is a whole number; found 1.5"),
        ({"shard_size": 0}, "--shard-size must be positive; found 0"),
        ({"max_memory": "1GB"}, "max_memory is a number of bytes; found '1GB'"),
        ({"shard_size": None}, "shard_size is a number of bytes; found None"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(submerge.RequestError) as error:
        submerge.Settings(**settings)
    assert str(error.value) == text
