"""What whole merges share."""

from __future__ import annotations

from pathlib import Path

import pytest

from _adapters import FIRST, SECOND, Tuned, make_tuned


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one base, of different rank, alpha, scale and modules."""
    return make_tuned(tmp_path_factory.mktemp("two"), "llama", FIRST, SECOND)


@pytest.fixture(scope="session")
def full(two: Tuned) -> list[Path]:
    """What the two adapters make of their base, as checkpoints."""
    return two.full()
