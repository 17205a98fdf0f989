"""Packages that are imported at their first use, and packages that need not be there."""

import sys
from pathlib import Path

import numpy
import pytest
import torch as real

from _cli import cli, merge
from _models import family
from submerge import RequestError
from submerge.deferred import np, required, torch


def test_what_is_deferred_is_the_module_itself() -> None:
    assert torch.Tensor is real.Tensor
    assert torch.nn.functional is real.nn.functional
    assert np.float32 is numpy.float32
    assert set(dir(real)) <= set(dir(torch))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        torch.nothing_of_the_kind  # noqa: B018


def test_a_package_that_is_there() -> None:
    assert required("os.path", "this test needs") is sys.modules["os.path"]


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(RequestError) as error:
        required("no_such_package.part", "this test needs")
    assert str(error.value) == "this test needs the package no_such_package — pip install no_such_package"


def test_a_package_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aged").mkdir()
    (tmp_path / "aged" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError) as error:
        required("aged.part", "this test needs")
    assert "No module named 'aged.part'" in str(error.value)
    assert "pip install --upgrade aged" in str(error.value)


def test_commands_that_need_no_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = family(tmp_path / "models", tokens={"a": 0, "b": 1})
    for package in ("transformers", "peft", "huggingface_hub", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    recipe, out = models.write_recipe("ties"), tmp_path / "out"
    for result in (
        cli("plan", recipe),
        cli("explain", recipe, "-t", "mlp"),
        merge(recipe, out),
        cli("extract-lora", models.tuned[0], "--base", models.base, "--rank", 2, "-o", tmp_path / "adapter"),
        cli("verify", out),
    ):
        assert result.code == 0, result.err
    assert 'transformers is not installed — pip install "submerge[models]"' in result.out
