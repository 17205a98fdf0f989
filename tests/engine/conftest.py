"""What tests of the engine share."""

from __future__ import annotations

import pytest

from _adapters import FIRST, Tuned, make_tuned
from _served import bert, llama

__all__ = ["bert", "llama", "two"]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one base, of different rank and scale, of the same modules."""
    return make_tuned(tmp_path_factory.mktemp("two"), "llama", FIRST, FIRST | {"r": 3, "lora_alpha": 1})
