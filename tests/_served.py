"""Fixtures of served tasks, built once a session, for the `conftest.py` of the folders that use them."""

from __future__ import annotations

from typing import Any

import pytest

import submerge
from _mass_tasks import Served, make


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("transformers")
    return make("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("transformers")
    return make("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(bert: Served) -> Any:
    return submerge.load(bert.merged("default"))
