"""What whole merges share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from _adapters import FIRST, SECOND, Tuned, make_tuned


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of one base, of different rank, alpha, scale and modules."""
    return make_tuned(tmp_path_factory.mktemp("two"), "llama", FIRST, SECOND)


@pytest.fixture(scope="session")
def full(two: Tuned) -> list[Path]:
    """What the two adapters make of their base, as checkpoints."""
    return two.full()


@pytest.fixture(scope="session")
def run_mergekit() -> Iterator[Any]:
    """What merges a recipe, as text or as a mapping, into a folder by mergekit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge = pytest.importorskip("mergekit.merge")
        config = pytest.importorskip("mergekit.config")
        options = pytest.importorskip("mergekit.options")
    level = logging.getLogger().level

    def run(recipe: str | dict[str, Any], out: Path) -> Path:
        given = yaml.safe_load(recipe) if isinstance(recipe, str) else recipe
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merge.run_merge(
                config.MergeConfiguration.model_validate(given),
                str(out),
                options.MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=0),
            )
        return out

    yield run
    logging.getLogger().setLevel(level)
