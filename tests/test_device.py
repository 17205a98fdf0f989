"""Devices that can and cannot be computed on."""

import pytest

from submerge.device import check_device
from submerge.errors import RequestError


def test_the_cpu_is_always_there() -> None:
    assert check_device("cpu") == "cpu"
    assert check_device("cpu:0") == "cpu"


@pytest.mark.parametrize(
    ("name", "what"), [("abacus", "no such device: abacus"), ("meta", "meta is not supported")]
)
def test_a_device_that_cannot_be_used(name: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as refused:
        check_device(name)
    assert refused.value.problems[0].where == "--device"
