"""The router's calibration: inputs of the tasks help it, and stay with the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _mass_tasks import Served
from submerge.store import Manifest

pytest.importorskip("transformers")

Data = dict[str, list[dict[str, torch.Tensor]]]


def inputs_of(served: Served, count: int) -> Data:
    """Return inputs of each task in two batches."""
    data: Data = {}
    for task in range(len(served.tuned)):
        inputs = served.inputs(task, count)
        halves = [slice(0, count // 2), slice(count // 2, count)]
        data[f"task{task}"] = [{name: x[half] for name, x in inputs.items()} for half in halves]
    return data


def right(model: Any, served: Served) -> float:
    inputs, tasks = served.mixed(60)
    found = model.route(**inputs).tasks
    return sum(f"task{t}" == name for t, name in zip(tasks, found, strict=True)) / len(tasks)


@pytest.fixture(scope="module")
def folder(bert: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four tasks, calibrated by 16 inputs of each."""
    folder = tmp_path_factory.mktemp("calibrated") / "served"
    shutil.copytree(bert.merged("default"), folder)
    submerge.calibrate_router(folder, inputs_of(bert, 16))
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value


def test_inputs_of_the_tasks_find_more_of_them(bert: Served, folder: Path) -> None:
    before = submerge.load(folder, calibration="none")
    after = submerge.load(folder)
    assert before.router.calibration is None
    assert right(before, bert) < 0.8 < 0.9 < right(after, bert)
    inputs, _ = bert.mixed()
    plain = submerge.load(bert.merged("default"))
    assert torch.equal(before.route(**inputs).scores, plain.route(**inputs).scores)
    assert not torch.equal(after.route(**inputs).scores, plain.route(**inputs).scores)
    out = after(**inputs)
    assert out.tasks == after.route(**inputs).tasks
    assert torch.allclose(out.coefficients.sum(1), torch.ones(len(out.tasks)).double())


def test_scores_are_a_logistic_regression_on_discriminants_and_the_scores_without_data(
    bert: Served, folder: Path
) -> None:
    model = submerge.load(folder)
    inputs, _ = bert.mixed()
    calibration = model.router.calibration
    evidence = model.router.first_pass.evidence(model, inputs, 8, calibration.sites)
    assert list(evidence.inputs) == list(calibration.sites)
    logs = [
        (evidence.inputs[site].double() @ fitted.weights.T + fitted.offsets).log_softmax(1)
        for site, fitted in zip(calibration.sites, calibration.discriminants, strict=True)
    ]
    weights = calibration.weights[True]
    data_free = submerge.load(folder, calibration="none").route(**inputs).scores
    wanted = weights.discriminant * torch.stack(logs).mean(0) + weights.data_free * data_free
    assert torch.allclose(model.route(**inputs).scores, wanted)
    prior = torch.randn(8, 4).log_softmax(1)
    assert torch.allclose(model.route(**inputs, prior=prior).scores, wanted + prior)
    grouped = model.route(**inputs, group="batch").scores
    assert torch.allclose(grouped, wanted.mean(0).expand_as(wanted))
    headless = submerge.load(folder, features=True)
    assert calibration.weights[False] != weights
    assert right(headless, bert) > 0.9


def test_it_stays_with_the_folder(bert: Served, folder: Path, tmp_path: Path) -> None:
    assert submerge.verify(folder).problems == []
    record = Manifest.read(folder).calibration
    assert record is not None
    assert record["inputs"] == {f"task{t}": 16 for t in range(4)}
    inputs, _ = bert.mixed()
    model = submerge.load(folder)
    model.save_pretrained(tmp_path / "saved")
    again = submerge.load(tmp_path / "saved")
    assert torch.equal(again.route(**inputs).scores, model.route(**inputs).scores)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    again.save_pretrained(tmp_path / "saved")
    assert submerge.verify(tmp_path / "saved").problems == []


def test_calibrating_again_replaces_it(bert: Served, folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path)
    (first,) = out.glob("router-*")
    found = submerge.calibrate_router(out, inputs_of(bert, 16))
    assert [path.name for path in out.glob("router-*")] == [first.name], "the same inputs, the same bytes"
    assert submerge.load(out).router.calibration.weights == found.weights
    submerge.calibrate_router(out, inputs_of(bert, 12))
    (second,) = out.glob("router-*")
    assert second.name != first.name
    assert submerge.load(out).router.calibration.counts["task0"] == 12
    assert submerge.verify(out, load=False).problems == []
    assert found.nbytes == 4 * (4 * (6 * 32 + 2 * 48) + 8 * 8)


def test_a_run_that_ends_before_its_end_leaves_the_folder_as_it_was(
    bert: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(folder, tmp_path)
    before = submerge.load(out).router.calibration

    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(submerge.WorkError, match="No space left"):
        submerge.calibrate_router(out, inputs_of(bert, 12))
    monkeypatch.undo()
    assert submerge.load(out).router.calibration.counts == before.counts
    assert submerge.verify(out, load=False).problems == []


def test_a_damaged_file_is_told(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path)
    (path,) = out.glob("router-*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused(lambda: submerge.load(out), "cannot be read", "calibrate the folder again")
    assert "the bytes are not those" in submerge.verify(out, load=False).problems[0]
    path.unlink()
    refused(lambda: submerge.load(out), "cannot be read")
    assert "cannot be read" in submerge.verify(out, load=False).problems[0]
    assert submerge.load(out, calibration="none").router.calibration is None


def test_another_first_pass_needs_another_calibration(folder: Path) -> None:
    refused(lambda: submerge.load(folder, score="gaussian"), "other settings of the first pass: score")
    refused(lambda: submerge.load(folder, first_pass="merged"), "routes_on_base", 'calibration="none"')
    assert submerge.load(folder, select="threshold", heads="max").router.calibration is not None
    assert submerge.load(folder, score="gaussian", calibration="none").router.calibration is None


def test_wrong_inputs_are_told(bert: Served, folder: Path, llama: Served) -> None:
    data = inputs_of(bert, 16)
    some = {name: data[name] for name in ("task0", "task2")}
    refused(lambda: submerge.calibrate_router(folder, some), "no inputs of task1, task3", "of every task")
    other = {**data, "nobody": data["task0"]}
    refused(lambda: submerge.calibrate_router(folder, other), "no task 'nobody'", "there are task0")
    few = {**data, "task1": inputs_of(bert, 2)["task1"]}
    refused(lambda: submerge.calibrate_router(folder, few), "fewer than 4 inputs of task1 (2)")
    alike = {
        name: [{key: x[:1].expand(8, -1) for key, x in batch[0].items()}] for name, batch in data.items()
    }
    refused(lambda: submerge.calibrate_router(folder, alike), "are all alike")
    images = {name: [{"pixel_values": torch.zeros(4, 3, 8, 8)}] for name in data}
    refused(lambda: submerge.calibrate_router(folder, images), "the model refuses inputs of pixel_values")
    before = json.loads((folder / "submerge.json").read_text())
    assert before["calibration"]["inputs"]["task0"] == 16


@pytest.mark.parametrize("kind", ["vit", "t5", "llama"])
def test_other_models(kind: str, tmp_path: Path) -> None:
    from _mass_tasks import make

    served = make(kind, tmp_path, 3)
    out = served.merged("served")
    found = submerge.calibrate_router(out, inputs_of(served, 8))
    assert found.has_heads == (kind == "vit")
    model = submerge.load(out)
    inputs, _ = served.mixed()
    assert model.route(**inputs).scores.isfinite().all()
    assert right(model, served) >= right(submerge.load(out, calibration="none"), served)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_presets(bert: Served, tmp_path: Path, preset: str) -> None:
    out = tmp_path / preset
    shutil.copytree(bert.merged(preset, preset=preset), out)
    submerge.calibrate_router(out, inputs_of(bert, 16))
    after, before = submerge.load(out), submerge.load(out, calibration="none")
    assert right(after, bert) > right(before, bert)
    inputs, _ = bert.mixed()
    assert after(**inputs).logits.shape[0] == 8
    assert not after(**inputs, group="batch").logits.isnan().any()
