"""The suite continual-6: its tasks, what is learnt from where, and a whole run on tiny models and data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication import cache as store
from benchmarks.replication.continual import encoder, merge, specialists, tasks
from benchmarks.replication.continual.steps import STEPS
from benchmarks.replication.continual.suite import ORDERS, ContinualSuite
from benchmarks.replication.lm import words
from benchmarks.replication.lm.fit import Tuning

from _decoder import PRETRAINING, TUNING

SIZES = {"train": 40, "validation": 6, "test": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: noise."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("mnist/mnist_t10k.npz", "fashion/fashion.npz", *tasks.OTHER_SETS.values()):
        side = (32, 32, 3) if "cifar" in name else (28, 28)
        found = {f"x_{part}": draw.integers(256, size=(90, *side), dtype=np.uint8) for part in _PARTS}
        found |= {f"y_{part}": np.arange(90, dtype=np.uint8) % 10 for part in _PARTS}
        (root / name).parent.mkdir(exist_ok=True)
        np.savez(root / name, **found)
    (root / "easyvqa").mkdir()
    images = {f"images_{part}": draw.integers(256, size=(9, 64, 64, 3), dtype=np.uint8) for part in _PARTS}
    np.savez(root / "easyvqa" / "images64.npz", **images)
    asked = [["what color is the shape?", "red", i % 9] for i in range(60)]
    for part in _PARTS:
        (root / "easyvqa" / f"{part}_questions.json").write_text(json.dumps(asked))
    return root


_PARTS = ("train", "test")


@pytest.mark.parametrize(
    ("question", "answer", "ours"),
    [
        ("what is the blue shape?", "rectangle", ("shape of image ?", "rectangle")),
        ("what color is the shape?", "blue", ("color of image ?", "blue")),
        ("is there a triangle in the image?", "no", ("is image triangle ?", "no")),
        ("does the image not contain a gray shape?", "yes", ("is image gray ?", "no")),
        ("is no red shape in the image?", "no", ("is image red ?", "yes")),
    ],
)
def test_questions_are_put_in_the_words_of_the_lm(question: str, answer: str, ours: tuple[str, str]) -> None:
    assert tasks._plain(question, answer) == ours


def test_images_of_all_sizes_become_one() -> None:
    assert tasks.images(np.ones((2, 28, 28), np.uint8)).shape == (2, 3, 32, 32)
    assert tasks.images(np.ones((2, 16, 16), np.uint8)).shape == (2, 3, 32, 32)
    large = np.zeros((1, 64, 64, 3), np.uint8)
    large[0, :2, :2, 1] = 200
    assert tasks.images(large)[0, :, 0, 0].tolist() == [0, 200, 0]


def test_no_image_of_the_validation_is_trained_on(data: Path) -> None:
    found = tasks.parts(tasks.TASKS[2], data, SIZES)
    assert [len(one.asked) for one in found.values()][1:] == [6, 8]
    shown = [{row.numpy().tobytes() for row in found[part].images} for part in ("train", "validation")]
    assert not shown[0] & shown[1]
    for one in found.values():
        assert {row for row, _, _ in one.asked} == set(range(len(one.images)))


def test_all_answers_are_words_and_all_orders_have_all_tasks() -> None:
    assert set(tasks._SIGNS.values()) <= set(words.VOCABULARY)
    assert sorted(tasks._SIGNS) == list(range(43))
    assert all(sorted(order) == sorted(task.name for task in tasks.TASKS) for order in ORDERS)
    assert not {task.name for task in tasks.TASKS} & set(tasks.OTHER_SETS)


def test_final_accuracy_and_forgetting() -> None:
    steps = [{"a": 0.9}, {"a": 0.5, "b": 0.8}, {"a": 0.6, "b": 0.4, "c": 0.2}]
    assert merge.final(steps) == pytest.approx(0.4)
    assert merge.forgetting(steps) == pytest.approx((0.3 + 0.4) / 2)
    assert merge.forgetting(steps[-1:]) is None


def test_rules_for_projectors() -> None:
    torch.manual_seed(0)
    some, x = (
        [specialists.PatchProjector(8) for _ in range(3)],
        torch.randn(2, encoder.PATCHES, encoder.CHANNELS),
    )
    with torch.inference_mode():
        assert torch.equal(merge.RULES["own"](some, 1)(x), some[1](x))
        same = merge.RULES["average"]([some[0]] * 3, 0)
        torch.testing.assert_close(same(x), some[0](x))
        assert not torch.allclose(merge.RULES["average"](some, 0)(x), some[0](x))


def test_training_goes_on_from_a_folder(data: Path, tiny_lm: Path, tmp_path: Path) -> None:
    encoder.pretrain(data, tmp_path / "encoder", 3)
    encoder.encode(tasks.TASKS[0], data, tmp_path / "encoder", tmp_path / "mnist", SIZES)
    parts = encoder.load(tmp_path / "mnist")
    assert parts["test"].features.shape == (8, encoder.PATCHES, encoder.CHANNELS)
    first, train = tmp_path / "first", {"mnist": parts["train"]}
    specialists.train(tiny_lm, train, first, TUNING, 0)
    none = Tuning(rank=4, first=2, steps=1, rate=0.0, batch=4)
    specialists.train(tiny_lm, train, tmp_path / "second", none, 0, first)
    for file in ("projector.safetensors", "language/adapter_model.safetensors"):
        assert (first / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), "a rate of zero"
    assert store.read(tmp_path / "second")["config"]["start"]["tasks"] == ["mnist"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process", "pretrained")
def test_a_whole_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = ContinualSuite(
        pretraining=PRETRAINING,
        tuning=TUNING,
        orders=(("mnist", "fashion", "easy-vqa"),),
        validation=6,
        test=8,
        encoder_steps=3,
        grid=(0.3, 1.0),
        least=0.0,
    )
    monkeypatch.setattr(command, "OTHERS", {"continual-6": (suite, STEPS)})
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    arguments = ["--seeds", "1", "--jobs", "1", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="not trained yet"):
        command.main(["merge", "continual-6", *arguments])
    asked = [*arguments, "--methods", "ties"]
    assert command.main(["all", "continual-6", *asked]) == 0
    results = json.loads((tmp_path / "out" / "replication-continual-6.json").read_text())
    rows = results["seeds"]["0"]
    assert set(rows) == {
        *merge.REFERENCES,
        *(f"{name}-{rule}" for name in ("average", "ties") for rule in merge.RULES),
    }
    assert [len(step) for step in rows["ties-own"]["steps"]] == [1, 2, 3]
    assert rows["ties-own"]["steps"][0]["mnist"] == rows["individual"]["steps"][0]["mnist"]
    assert [len(step) for step in rows["sequential"]["steps"]] == [1, 2, 3]
    assert rows["sequential"]["forgetting"] is not None
    assert rows["joint"]["forgetting"] is None
    assert str(tmp_path) not in json.dumps(results), "no path of this machine"
    assert "own projector" in (tmp_path / "out" / "replication-continual-6.md").read_text()
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    monkeypatch.setattr(specialists, "fit", lambda *_: pytest.fail("it was trained again"))
    for step in ("train", "merge"):
        assert command.main([step, "continual-6", *asked]) == 0
