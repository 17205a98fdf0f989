"""The level from which a router's scores count: that of noise, or of inputs of all tasks together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _mass_tasks import Served
from submerge.routing._reference import REFERENCE_INPUTS, reference_inputs
from submerge.store import Manifest

pytest.importorskip("transformers")


def residuals(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.route(**inputs, details=True).residuals.double()


def together(served: Served, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return inputs of all tasks in two batches, which nobody sorted by their task."""
    inputs, tasks = served.mixed(count)
    half = len(tasks) // 2
    return [{name: x[part] for name, x in inputs.items()} for part in (slice(0, half), slice(half, None))]


@pytest.fixture(scope="module")
def folder(bert: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that knows the level of inputs of all tasks together."""
    folder = tmp_path_factory.mktemp("reference") / "served"
    shutil.copytree(bert.merged("default"), folder)
    submerge.calibrate_router(folder, together(bert))
    return folder


def test_scores_of_a_decoders_adapters_count_from_those_of_noise(llama: Served) -> None:
    folder = llama.merged("default")
    inputs, _ = llama.mixed()
    plain = submerge.load(folder, score="leading", reference="none")
    noise = reference_inputs(plain, inputs)
    level = residuals(plain, noise).mean(1, keepdim=True)
    wanted = residuals(plain, inputs) - level
    for given in ({"score": "leading"}, {"score": "leading", "reference": "noise"}):
        assert torch.allclose(residuals(submerge.load(folder, **given), inputs), wanted, atol=1e-6)
    assert level.std() > 1e-3, "it is not the same for all tasks"


@pytest.mark.parametrize(("of", "score"), [("bert", "leading"), ("llama", "residual")])
def test_others_have_no_reference_unless_asked(of: str, score: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(of)
    inputs, _ = served.mixed()
    scores = {
        word: submerge.load(served.merged("default"), score=score, reference=word).route(**inputs).scores
        for word in ("auto", "none", "noise")
    }
    assert torch.equal(scores["auto"], scores["none"])
    assert not torch.allclose(scores["noise"], scores["none"], atol=1e-3)


def test_noise_has_no_token_with_a_role(llama: Served) -> None:
    model = submerge.load(llama.merged("default"))
    model.config.pad_token_id, model.config.eos_token_id = 7, [8, 9]
    ids = reference_inputs(model, llama.mixed()[0])["input_ids"]
    assert len(ids) == REFERENCE_INPUTS
    assert not set(ids.flatten().tolist()) & {7, 8, 9}
    assert 0 <= ids.min() < ids.max() < model.config.vocab_size
    embedded = reference_inputs(model, {"inputs_embeds": torch.zeros(1, 2, 32)})
    assert torch.equal(embedded["input_ids"], ids), "whatever the first batch is"
    assert reference_inputs(model, {"input_ids": torch.zeros(1, 4, 2, dtype=torch.long)}) == {}


def test_inputs_of_any_task_are_the_level(bert: Served, folder: Path) -> None:
    plain, model = submerge.load(folder, calibration="none"), submerge.load(folder)
    batches = together(bert)
    before = torch.cat([residuals(plain, batch) for batch in batches], 1)
    after = torch.cat([residuals(model, batch) for batch in batches], 1)
    assert torch.allclose(after, before - before.mean(1, keepdim=True), atol=1e-5)
    found = submerge.calibrate_router(shutil.copytree(folder, folder.parent / "again"), batches[::-1])
    assert torch.allclose(found.levels, model.router.first_pass.reference.levels, atol=1e-9), "any order"
    tasks = [task for batch in batches for task in model.route(**batch).tasks]
    shares = {name: tasks.count(name) / found.count for name in model.router.names}
    assert found.found == pytest.approx(shares)


def test_the_level_stays_with_the_folder(bert: Served, folder: Path, tmp_path: Path) -> None:
    assert submerge.verify(folder).problems == []
    record = Manifest.read(folder).calibration
    assert record is not None
    assert record["inputs"] == 32
    model = submerge.load(folder)
    model.save_pretrained(tmp_path / "saved")
    inputs, _ = bert.mixed()
    again = submerge.load(tmp_path / "saved")
    assert torch.equal(again.route(**inputs).scores, model.route(**inputs).scores)
    by_task = {f"task{t}": [bert.inputs(t, 8)] for t in range(4)}
    submerge.calibrate_router(tmp_path / "saved", by_task)
    replaced = submerge.load(tmp_path / "saved").router
    assert replaced.calibration is not None
    assert replaced.first_pass.reference is None
    assert len(list((tmp_path / "saved").glob("router-*"))) == 1


def test_what_does_not_fit_is_told(bert: Served, folder: Path) -> None:
    few = [{name: x[:3] for name, x in together(bert)[0].items()}]
    with pytest.raises(submerge.RequestError, match="there are 3 inputs"):
        submerge.calibrate_router(folder, few)
    with pytest.raises(submerge.RequestError, match="other settings of the first pass: score"):
        submerge.load(folder, score="gaussian")
    assert submerge.load(folder, score="gaussian", calibration="none").router.first_pass.reference is None


@pytest.mark.parametrize("kind", ["vit", "t5"])
def test_other_models_and_one_pass(kind: str, tmp_path: Path) -> None:
    from _mass_tasks import make

    served = make(kind, tmp_path, 3)
    out = served.merged("served")
    inputs, _ = served.mixed()
    assert submerge.load(out, score="leading").route(**inputs).scores.isfinite().all()
    submerge.calibrate_router(out, together(served))
    model = submerge.load(out)
    assert model.route(**inputs).scores.isfinite().all()
    assert model.router.first_pass.reference is not None
    if kind == "vit":
        one = submerge.load(out, passes="one", score="leading", calibration="none")
        assert one(**inputs).logits.shape[0] == len(next(iter(inputs.values())))
