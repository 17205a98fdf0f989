"""Exports of states with images: they are verified, served, and saved from what serves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from continual.helpers_images import ImageTasks, batches
from submerge.store import BANK

NAMES = ("birds", "cars", "maps")
FORMS = ("adapter", "checkpoint")


@pytest.fixture(scope="module")
def exports(images: ImageTasks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a state's export in each form."""
    root = tmp_path_factory.mktemp("exports")
    state = submerge.Continual.begin(root / "state", images.base)
    for name in NAMES:
        state.add(*images.of(name))
    return {form: state.export(root / form, form=form).out for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_bank_is_found(exports: dict[str, Path], tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(exports[form], out)
    assert submerge.verify(out, load=False).problems == []
    with (out / BANK).open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01\x02")
    (problem,) = submerge.verify(out, load=False).problems
    assert "not those that were written" in problem
    (out / BANK).unlink()
    assert BANK in submerge.verify(out, load=False).problems[0]
    with pytest.raises(submerge.RequestError, match=BANK):
        submerge.load(out)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_what_serves_an_export_can_be_saved(exports: dict[str, Path], tmp_path: Path, form: str) -> None:
    model: Any = submerge.load(exports[form])
    model.save_pretrained(tmp_path / "again")
    again = submerge.load(tmp_path / "again")
    for name in NAMES:
        (batch, _) = batches(name)
        out = model(**batch)
        assert out.tasks == [name] * 4
        torch.testing.assert_close(again(**batch).logits, out.logits)
