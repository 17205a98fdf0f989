"""What every test may use: the peers we compare with, and an engine that works in tiny pieces."""

import importlib.util
import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from _adapters import Tuned, make_tuned
from _rounding import Rounding
from store.helpers_adapter import CASES

TESTS = Path(__file__).parent

logging.getLogger().addHandler(logging.NullHandler())  # else logging prints what no library's handler takes

settings.register_profile("submerge", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("submerge")


@pytest.fixture(scope="session")
def mergekit() -> ModuleType:
    """mergekit's merges of tensors and state dicts in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mergekit.merge_methods.api")


@pytest.fixture(scope="session")
def peft_merge() -> ModuleType:
    """PEFT's `merge_utils`, loaded by itself: all of PEFT takes seconds to import."""
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("peft is not installed")
    path = f"{spec.submodule_search_locations[0]}/utils/merge_utils.py"
    alone = importlib.util.spec_from_file_location("peft_merge_utils", path)
    assert alone is not None
    assert alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tuned_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    """A function that returns the base and the adapter of a case, made once; they are only read."""

    @cache
    def of(case: str) -> Tuned:
        kind, options = CASES[case]
        return make_tuned(tmp_path_factory.mktemp(case), kind, options)

    return of


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes the engine work in chunks of `length` and search thresholds by sampling."""

    def shrink(length: int = 500, tasks: int = 3) -> None:
        monkeypatch.setattr(
            "submerge.engine.work._chunk_reader.chunk_length",
            lambda _, width: width * max(1, length // width),
        )
        monkeypatch.setattr("submerge.engine.plan.tensors._tensor.RANGE_ELEMENTS", tasks * length)
        monkeypatch.setattr("submerge.engine.work._chunk_reader.SAMPLE_RUNS", 4)
        monkeypatch.setattr("submerge.engine.work._chunk_reader.SAMPLE_LENGTH", 100)
        monkeypatch.setattr("submerge.algebra._select.COLLECT_ALL", 1000)
        monkeypatch.setattr("submerge.algebra._select.COLLECT_MOST", 1500)

    return shrink


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> Rounding:
    """Matrix products and decompositions that are off by up to one unit in the last place, anew each time.

    What passes under it does not depend on how a BLAS or a LAPACK rounds, nor on the signs of eigenvectors.
    """
    rounding = Rounding()
    rounding.into(monkeypatch)
    return rounding


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that are in no folder: that of the docs is long, and must not come last."""
    items.sort(key=lambda item: item.path.parent != TESTS)
