"""The suite continual-6: its tasks, how they are learnt, and a run on tiny random models and data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("PIL")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.continual import hide, questions, scores, specialists, sweeps, tasks
from benchmarks.replication.continual.elastic import Elastic
from benchmarks.replication.continual.merge import ContinualBench
from benchmarks.replication.continual.scores import TaskScorer
from benchmarks.replication.continual.suite import CONTINUAL_6, ORDERS
from benchmarks.replication.continual.training import TaskTrainer, train_base
from benchmarks.replication.continual.twins import TWINS, VARIANTS, compare_twins
from benchmarks.replication.multimodal.reader import ModalityReader, PromptRow

from _tiny_multimodal import put_bases, write_encoder, write_language_model

SIZES = {"train": 40, "validation": 6, "test": 8}
SUITE = CONTINUAL_6.fast()
WORDS = (
    *"0123456789?",
    *tasks.GARMENTS,
    *tasks.NUMBERS,
    *tasks.COLOURS,
    *tasks.SHAPES,
    *("yes", "no", "What", "Which", "is", "it", "a", "color", "shape", "garment", "number", "this"),
)
_PARTS = ("train", "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data in the form of the real ones: noise."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def save(file: str, **arrays: np.ndarray) -> None:
        (root / file).parent.mkdir(exist_ok=True)
        np.savez(root / file, **arrays)

    def noise(*shape: int) -> np.ndarray:
        return draw.integers(256, size=shape, dtype=np.uint8)

    def labelled(file: str, side: tuple[int, ...], count: int, **more: np.ndarray) -> None:
        arrays = {f"x_{part}": noise(count, *side) for part in _PARTS}
        save(
            file, **arrays, **{f"y_{part}": np.arange(count, dtype=np.uint8) % 10 for part in _PARTS}, **more
        )

    classes = np.array(["plane", "cat", "bird", "deer", "dog", "frog", "car", "horse", "ship", "truck"])
    labelled("cifar10/cifar10.npz", (32, 32, 3), 200, classes=classes)
    labelled("mnist/mnist_t10k.npz", (28, 28), 7010)
    labelled("fashion/fashion.npz", (28, 28), 200)
    labelled("usps/usps_t.npz", (16, 16), 40)
    labelled("gtsrb/gtsrb32.npz", (32, 32, 3), 40)
    names = np.array(["area", "length", "thickness", "slant", "width", "height"])
    measured = draw.random((300, 6), dtype=np.float32)
    numbers = np.arange(300, dtype=np.uint8) % 10
    save("kannada/kannada_test.npz", x=noise(300, 28, 28), y=numbers, morpho=measured, morpho_cols=names)
    save("easyvqa/images64.npz", **{f"images_{part}": noise(30, 64, 64, 3) for part in _PARTS})
    asked = [["what color is the shape?", "red", i % 30] for i in range(200)]
    for part in _PARTS:
        (root / "easyvqa" / f"{part}_questions.json").write_text(json.dumps(asked))
    return root


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    language_model = write_language_model(tmp_path_factory.mktemp("llama"), WORDS)
    return language_model, write_encoder(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def cache(
    bases: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cache]:
    """Return a cache in which the tiny bases lie; give torch its threads afterwards."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("SUBMERGE_DATA", str(data))
    put_bases(SUITE.multimodal, tmp_path, *bases)
    yield Cache(tmp_path, SUITE.name)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("question", "answer", "ours"),
    [
        ("what is the blue shape?", "rectangle", ("What shape is it?", "rectangle")),
        ("what color is the shape?", "blue", ("What color is it?", "blue")),
        ("is there a triangle in the image?", "no", ("Is it a triangle?", "no")),
        ("does the image not contain a gray shape?", "yes", ("Is it gray?", "no")),
        ("is no red shape in the image?", "no", ("Is it red?", "yes")),
    ],
)
def test_nothing_is_asked_by_its_contrary(question: str, answer: str, ours: tuple[str, str]) -> None:
    assert tasks._plain(question, answer) == ours


def test_images_of_all_sizes_become_one() -> None:
    assert tasks.pictures(np.ones((2, 28, 28), np.uint8)).shape == (2, 32, 32, 3)
    large = np.zeros((1, 64, 64, 3), np.uint8)
    large[0, :2, :2, 1] = 200
    assert tasks.pictures(large)[0, 0, 0].tolist() == [0, 200, 0]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_part_of_a_task_has_images_of_its_own(data: Path, name: str) -> None:
    read = tasks.parts(tasks.TASKS[name], data, SIZES)
    assert [len(read[part]) for part in ("validation", "test")] == [6, 8]
    shown = [{row.inputs["image"][0].tobytes() for row in read[part]} for part in tasks.PARTS]
    assert len(set.union(*shown)) == sum(map(len, shown))
    for row in (row for rows in read.values() for row in rows):
        assert row.prompt.startswith("<image>")
        assert row.inputs["image"][0].shape == (32, 32, 3)
        assert len(row.answer.split()) == 1


def test_all_orders_have_all_tasks() -> None:
    assert sorted(tasks.SIGNS) == list(range(43))
    assert all(sorted(order) == sorted(set(tasks.TASKS) - {"strokes"}) for order in ORDERS)


def test_final_accuracy_and_forgetting() -> None:
    steps = [{"a": 0.9}, {"a": 0.5, "b": 0.8}, {"a": 0.6, "b": 0.4, "c": 0.2}]
    assert scores.final(steps) == pytest.approx(0.4)
    assert scores.forgetting(steps) == pytest.approx((0.3 + 0.4) / 2)
    assert scores.forgetting(steps[-1:]) is None


def _rows(data: Path, task: str = "fashion") -> list[PromptRow]:
    return tasks.parts(tasks.TASKS[task], data, SIZES)["train"]


def test_questions_are_read_as_the_model_reads_them(cache: Cache, data: Path) -> None:
    """Padding on the left changes nothing, and the last places are those of the answer and the end."""
    train_base(SUITE, cache, data)
    reader = ModalityReader(SUITE.base(cache), "image")
    rows = [*_rows(data)[:2], *_rows(data, "count")[:1]]
    read = questions.read_questions(reader.processor, rows)
    assert len({len(one.ids) for one in read}) > 1
    with torch.no_grad():
        together = reader.model(**questions.model_inputs(read)).logits[:, -1]
        alone = torch.cat([reader.model(**questions.model_inputs([one])).logits[:, -1] for one in read])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    inputs, due = questions.training_inputs(read, end=3)
    assert due[:, -1].tolist() == [3] * 3
    assert due[:, -2].tolist() == [one.answer[-1] for one in read]
    assert inputs["logits_to_keep"] == due.shape[1]
    right = [replace(one, answer=[int(token)]) for one, token in zip(read, alone.argmax(-1), strict=True)]
    assert questions.accuracy(reader.model, right) == 1


def test_a_task_is_an_adapter_that_changes_language_model_and_projector(cache: Cache, data: Path) -> None:
    train_base(SUITE, cache, data)
    base, first = SUITE.base(cache), cache.root / "first"
    specialists.train(base, {"fashion": _rows(data)}, first, SUITE.training, 0)
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector"]
    before = load_file(first / "adapter_model.safetensors")
    assert {"lora" in name or "projector" in name for name in before} == {True}
    assert not [name for name in before if "vision" in name]
    stays = replace(SUITE.training, steps=1, rate=0.0, projector_rate=0.0)
    elastic = {"elastic": Elastic(samples=2), "last": _rows(data)}
    for name, start in (("second", first), ("third", cache.root / "second")):
        specialists.train(
            base, {"count": _rows(data, "count")}, cache.root / name, stays, 0, start, **elastic
        )
        after = load_file(cache.root / name / "adapter_model.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before), "a rate of zero"
    second, third = (load_file(cache.root / name / "fisher.safetensors") for name in ("second", "third"))
    assert all((third[name] >= second[name]).all() for name in second), "summed over tasks"


def test_what_mattered_is_kept_near(cache: Cache) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    losses = [lambda: weight[0] * 3.0, lambda: weight[0] * 1.0]
    penalty = Elastic(strength=4.0).penalty({"w": weight}, losses, cache.root / "none", cache.root.parent)
    assert penalty() == 0
    with torch.no_grad():
        weight += 1
    assert penalty().item() == pytest.approx(4 / 2 * (9 + 1) / 2)


def test_factors_are_summed_and_projectors_are_not(tmp_path: Path) -> None:
    draw, adapters = torch.Generator().manual_seed(0), {}
    for task in ("one", "two"):
        state = {name: torch.randn(2, 2, generator=draw) for name in ("q.lora_A", "q.lora_B", "projector")}
        adapters[task] = tmp_path / task
        adapters[task].mkdir()
        save_file(state, adapters[task] / hide.WEIGHTS)
        (adapters[task] / "adapter_config.json").write_text("{}")
    before, after = (
        [load_file(adapter / hide.WEIGHTS) for adapter in some.values()]
        for some in (adapters, hide.fuse(adapters, tmp_path / "fused"))
    )
    sums = {name: before[0][name] + before[1][name] for name in before[0]}
    both = sums["q.lora_B"] @ sums["q.lora_A"]
    torch.testing.assert_close(sum(one["q.lora_B"] @ one["q.lora_A"] for one in after), both)
    assert [torch.equal(a["projector"], b["projector"]) for a, b in zip(before, after, strict=True)] == [
        True
    ] * 2


@pytest.mark.slow
def test_a_fast_run_ends_with_a_report(cache: Cache, one_process: None) -> None:
    arguments = ["continual-6", "--fast", "--cache", str(cache.root.parent), "--jobs", "1"]
    with pytest.raises(SystemExit, match="not trained yet"):
        command.main(["merge", *arguments])
    asked = "task_arithmetic-merged,average-mixed,many-mixed"
    assert command.main(["all", *arguments, "--methods", asked]) == 0
    results = json.loads((cache.root / f"replication-{SUITE.name}.json").read_text())
    rows = results["seeds"]["0"]
    assert [len(step) for step in rows["sequential"]["steps"]] == [1, 2, 3]
    assert rows["individual"]["forgetting"] is None
    for name in asked.split(","):
        assert [len(step) for step in rows[name]["steps"]] == [1, 2, 3]
        assert set(rows[name]["steps"][-1]) == set(SUITE.tasks)
        ways = {"uncentred", "question", "told"} if name.endswith("mixed") else set()
        assert {way for way in ("uncentred", "question", "told") if way in rows[name]} == ways
        served = {"discriminant", "discriminant_question"} if name.endswith("mixed") else set()
        assert {way for way in rows[name] if way.startswith("discriminant")} == served
        assert {way for way in rows[name] if way.startswith("forgetting_")} == {
            f"forgetting_{w}" for w in served
        }
    assert str(cache.root.parent) not in json.dumps(results), "no path of this machine"
    assert len(list(cache.root.glob("*.png"))) == 2


@pytest.mark.slow
def test_mixtures_are_swept_and_tasks_of_the_same_images_compared(
    cache: Cache, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = replace(SUITE, orders=(("fashion", "numbers"),))
    train_base(suite, cache, data)
    for task in ("fashion", *TWINS):
        TaskTrainer(suite, cache, 0, data).train(task)
    bench = ContinualBench(suite, cache, 0, TaskScorer(suite, cache, data), MergeOptions(()))
    monkeypatch.setattr(sweeps, "TEMPERATURES", (0.0, 1.0))
    cosine = sweeps.COSINE
    each = (
        {},
        {"prototypes": 4},
        {"key": "both"},
        {"pooling": "position", **cosine},
        {"centred": False, **cosine},
    )
    assert all(one in sweeps.SETTINGS for one in each)
    monkeypatch.setattr(sweeps, "SETTINGS", each)  # every key once: each setting is a merge
    swept = sweeps.sweep(bench)
    assert len(swept["shares"]) == len(each)
    assert set(swept["accuracy"]) == {"0.0", "1.0"}
    nearest = swept["shares"]["default"]["0.0"]
    assert nearest["share"] == pytest.approx(nearest["leading"], abs=1e-3), "one projector for each image"
    compared = compare_twins(bench)
    assert compared is not None
    assert all(set(compared[name]) == set(TWINS) for name in VARIANTS)
