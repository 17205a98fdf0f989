"""Exports of states with images: they are verified, served, and saved from what serves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import quiet_transformers
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


def test_an_adapter_whose_base_was_moved(exports: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exports["adapter"], out)
    config = out / "adapter_config.json"
    named = json.loads(config.read_text())["base_model_name_or_path"]
    for gone in (str(tmp_path / "gone"), "some/where"):
        config.write_text(config.read_text().replace(named, gone))
        with pytest.raises(submerge.RequestError, match=f"lies on the base {gone}, which is not here"):
            submerge.load(out)
        named = gone


def test_an_adapter_without_a_gate_is_for_peft(images: ImageTasks, tmp_path: Path) -> None:
    state = submerge.Continual.begin(tmp_path / "state", images.base)
    state.add(*images.of("signs"))
    for number, weights in enumerate(({}, {"signs": 2.0})):  # with weights it has a submerge.json
        out = state.export(tmp_path / str(number), weights=weights).out
        with pytest.raises(
            submerge.RequestError, match="keeps no gate: it is an adapter — load it with PEFT"
        ):
            submerge.load(out)


@torch.no_grad()
def test_without_updates_the_projectors_are_mixed_on_the_base(images: ImageTasks, tmp_path: Path) -> None:
    """λ = 0: CPM alone."""
    state = submerge.Continual.begin(tmp_path / "state", images.base)
    for name in ("birds", "cars"):
        state.add(*images.of(name))
    report = state.export(tmp_path / "out", form="checkpoint", scale=0)
    assert (report.scale, report.rank, report.projectors) == (0, 0, 2)
    base = quiet_transformers().LlavaForConditionalGeneration.from_pretrained(images.base)
    parameters = dict(base.named_parameters())
    for name, values in images.projector("birds").items():
        parameters[f"model.{name}"].copy_(values)
    (batch, _) = batches("birds")
    torch.testing.assert_close(
        submerge.load(report.out)(**batch, task="birds").logits, base(**batch).logits, rtol=0, atol=0
    )
