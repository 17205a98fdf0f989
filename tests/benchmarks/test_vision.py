"""The suites on pictures: formulas, base, rows, targets, and a whole run on a tiny ViT."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")

from benchmarks.replication import cache as store
from benchmarks.replication import splits, train
from benchmarks.replication.admit import Candidate, admission, markdown
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.heads import Head, loss, predict, score, shots
from benchmarks.replication.merge import SuiteBench
from benchmarks.replication.methods import rows as merges
from benchmarks.replication.routing.measure import Servers
from benchmarks.replication.routing.rows import ROWS
from benchmarks.replication.rows import CLASSES, DENSE, SCORE, HubSet, Rows, SuiteTask
from benchmarks.replication.specialists import Specialists
from benchmarks.replication.suite import Base, Suite, Training
from benchmarks.replication.vision import base as base_of
from benchmarks.replication.vision import suites
from benchmarks.replication.vision.base import Pretraining, pretrain
from benchmarks.replication.vision.formula import CLASSES as FORMULAS
from benchmarks.replication.vision.formula import Formulas
from benchmarks.replication.vision.pictures import PICTURES, cell, rows
from benchmarks.replication.vision.sounds import spectrogram
from benchmarks.replication.vision.targets import MEASURED
from benchmarks.replication.vision.tasks import NAMED

import submerge
from _models import quiet_transformers

TINY = Pretraining(steps=6, width=16, layers=2, heads=2, batch=8, warmup=2, every=2)


def _bars(kind: str) -> Rows:
    """Return pictures with a bright bar: its direction, its place, or its pixels."""
    draw = np.random.default_rng(0)
    places = draw.integers(2, 27, 120)
    images = draw.integers(0, 60, (120, 32, 32)).astype(np.uint8)
    masks = np.zeros_like(images)
    for number, place in enumerate(places):
        where = (slice(place, place + 4), slice(None))
        masks[number][where if number % 2 else where[::-1]] = 1
    images = np.where(masks, 200 + images % 50, images).astype(np.uint8)
    labels = {CLASSES: np.arange(120) % 2, SCORE: places / 28, DENSE: [mask.tobytes() for mask in masks]}
    return rows(images, labels[kind])


def _read(_: Path, kind: str) -> tuple[Rows, Rows]:
    made = _bars(kind)
    return made[:90], made[90:]


KNOWN = {
    kind: SuiteTask(kind, lambda root, kind=kind: _read(root, kind), None, kind)
    for kind in (CLASSES, SCORE, DENSE)
}
WHOLE = Suite(
    name="bars",
    known=KNOWN,
    tasks=tuple(KNOWN),
    trainings={
        "full": Training(steps=6, rate=1e-3, batch=8),
        "lora": Training(steps=6, rate=1e-3, rank=2, alpha=4, batch=8),
    },
    base=Base(lambda folder: pretrain(folder, TINY, lambda _: None), "formulas", TINY.config()),
    domain=PICTURES,
    validation=20,
    test=20,
    shots=2,
    generic=8,
    router_shots=10,
)
PART = WHOLE.part("bars-2", (SCORE, DENSE))


@pytest.fixture(scope="module")
def made() -> dict[str, splits.Split]:
    return splits.load(WHOLE, Path())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, made: dict[str, splits.Split]) -> Cache:
    quiet_transformers()
    root = tmp_path_factory.mktemp("vision")
    place = Cache(root, *PART.places)
    train.write_base(WHOLE, place)
    train.heads(PART, place, lambda: made, 0)
    heads = train.load_heads(PART, place, made, 0)
    for kind in WHOLE.trainings:
        for task, split in made.items():
            train.specialist(WHOLE, place, split, heads[task], kind, 0)
    return place


def test_formulas_depend_on_the_seed_alone() -> None:
    images, labels = Formulas().draw(200, torch.Generator().manual_seed(1))
    again, same = Formulas().draw(200, torch.Generator().manual_seed(1))
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert images.shape == (200, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert labels.max() < FORMULAS
    other, _ = Formulas(1).draw(200, torch.Generator().manual_seed(1))
    assert not torch.equal(images, other)
    assert (images.flatten(1).std(1) > 0.01).float().mean() > 0.98, "hardly a picture is empty"


def test_a_base_that_was_ended_goes_on(tmp_path: Path) -> None:
    quiet_transformers()
    whole, broken = tmp_path / "whole" / "base", tmp_path / "broken" / "base"
    for folder in (whole, broken):
        folder.mkdir(parents=True)
    pretrain(whole, TINY, lambda _: None)

    def end(line: str) -> None:
        if "4 of 6" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(broken, TINY, end)
    steps: list[str] = []
    pretrain(broken, TINY, steps.append)
    assert [line.split(",")[0] for line in steps] == ["base: 6 of 6 steps"]
    files = [folder / "model.safetensors" for folder in (whole, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in broken.parent.iterdir()] == ["base"], "no checkpoint is left"


def test_a_base_goes_on_where_a_shorter_one_has_not_cooled(tmp_path: Path) -> None:
    quiet_transformers()
    longer, files = replace(TINY, steps=8), []
    for name, ends in (("whole", ""), ("level", "4 of 6"), ("cooling", "6 of 6")):
        folder = tmp_path / name / "base"
        folder.mkdir(parents=True)

        def end(line: str, ends: str = ends) -> None:
            if ends in line:
                raise KeyboardInterrupt

        if ends:
            with pytest.raises(KeyboardInterrupt):
                pretrain(folder, TINY, end)
        steps: list[str] = []
        pretrain(folder, longer, steps.append)
        assert len(steps) == (2 if name == "level" else 4)
        files.append((folder / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_another_base_does_not_go_on_at_a_checkpoint(tmp_path: Path) -> None:
    quiet_transformers()
    folder = tmp_path / "base"
    folder.mkdir()

    def end(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(folder, TINY, end)
    steps: list[str] = []
    pretrain(folder, replace(TINY, seed=1), steps.append)
    assert len(steps) == 3, "from the start"


def test_a_longer_base_is_the_same_up_to_the_cooling() -> None:
    pace = [[base_of._pace(step, replace(TINY, steps=steps)) for step in range(6)] for steps in (8, 80)]
    assert pace[0] == pace[1]
    assert base_of._pace(7, replace(TINY, steps=8)) == 0.5


def test_rows_are_pixels_of_one_size() -> None:
    grey = rows(np.full((2, 28, 28), 7, np.uint8), [0, 1])
    assert [len(row[0]) for row in grey] == [1024, 1024]
    assert set(grey[0][0]) == {7}, "the margin is like the edge"
    doubled = np.frombuffer(rows(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), [0])[0][0], np.uint8)
    assert doubled.reshape(32, 32)[:4, :2].tolist() == [[0, 0], [0, 0], [16, 16], [16, 16]]
    colours = np.zeros((1, 32, 32, 3), np.uint8)
    colours[..., 1] = 9
    row = rows(colours, np.array([3]))[0]
    assert (len(row[0]), row[2]) == (3072, 3)
    items = PICTURES.items([(*grey[0][:2], 0), row], Path())
    pixels = items.batch([1, 0])["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32)
    assert ((pixels[0, :, 0, 0] + 1) * 127.5).round().tolist() == [0, 9, 0], "channels come first"


def test_pictures_of_the_hub_become_rows() -> None:
    image = pytest.importorskip("PIL.Image")
    assert len(cell(image.new("L", (28, 28), 5))) == 1024
    assert len(cell(image.new("RGB", (60, 40)))) == 3072


def test_only_what_is_named_is_moved(made: dict[str, splits.Split]) -> None:
    for kind, split in made.items():
        items = PICTURES.items(split.train, Path(), kind)
        plain = items.batch([0, 1])["pixel_values"]
        moved = items.batch([0, 1], draw=torch.Generator().manual_seed(0))["pixel_values"]
        assert torch.equal(plain, moved) == (kind != CLASSES)
        assert (plain - moved).abs().mean() < 0.5


def test_masks_are_cut_like_patches(made: dict[str, splits.Split]) -> None:
    items = PICTURES.items(made[DENSE].train, Path(), DENSE)
    mask = np.frombuffer(made[DENSE].train[0][2], np.uint8).reshape(32, 32)
    assert items.labels[0, 6].tolist() == mask[8:16, 16:24].flatten().tolist()


def test_a_head_of_places_finds_pixels() -> None:
    features = torch.eye(4)[torch.tensor([[0, 1], [2, 3]])]  # two inputs of two places
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]], dtype=torch.uint8)
    head = Head.of_places(torch.full((4,), 0.25), features, masks, kind=DENSE)
    assert torch.equal(predict(head, features) > 0.5, masks.bool())
    assert loss(head, features, masks) < loss(head, features, 1 - masks)
    assert score(DENSE, predict(head, features), masks) > 0.8
    assert len(shots([(b"", None, b"")] * 50, DENSE, 0, 3, 0)[0]) == 30


def test_a_higher_tone_is_higher_up() -> None:
    seconds = np.arange(2000) / 8000
    heights = []
    for tone in (300, 1000, 3000):
        found = spectrogram((8000 * np.sin(2 * np.pi * tone * seconds)).astype(np.int16))
        assert found.shape == (32, 32)
        assert found[:, -1].max() == 0, "after its end there is silence"
        heights.append(int(found[:, 5].argmax()))
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_parts_of_a_suite_share_heads_and_specialists(
    cache: Cache, made: dict[str, splits.Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.specialist(0, "full", SCORE).parent.parent.parent.name == "bars"
    assert (cache.base.parent.name, cache.root.name) == ("formulas", "bars-2")
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it was trained again"))
    heads = train.load_heads(PART, cache, made, 0)
    train.heads(PART, cache, lambda: pytest.fail("heads were made again"), 0)
    train.specialist(PART, cache, made[SCORE], heads[SCORE], "full", 0)
    alone = PART.alone("other", PART.tasks)
    assert alone.places == ("other", "other", "formulas")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        train.specialist(alone, cache, made[SCORE], heads[SCORE], "full", 0)


def test_training_moves_what_it_should(cache: Cache) -> None:
    base = PICTURES.load(cache.base, cache.base).state_dict()
    full = PICTURES.load(cache.specialist(0, "full", CLASSES), cache.base).state_dict()
    changed = {name for name, value in full.items() if not torch.equal(value, base[name])}
    assert not any(name.startswith("embeddings") for name in changed)
    assert len([name for name in changed if name.startswith("layers") and name.endswith("weight")]) == 2 * 8
    adapted = PICTURES.load(cache.specialist(0, "lora", DENSE), cache.base).state_dict()
    moved = {name for name, value in adapted.items() if not torch.equal(value, base[name])}
    assert len(moved) == 2 * 6, "attention's four matrices and the two of the MLP"


def test_a_whole_run(cache: Cache, made: dict[str, splits.Split]) -> None:
    parts = {task: made[task] for task in PART.tasks}
    for kind, name in (("full", "tsv_m"), ("lora", "ties")):
        options = MergeOptions(grid=(0.3, 1.0), screen=0, costs=False, peers=False)
        bench = SuiteBench(Specialists(PART, cache, parts, kind, 0), options)
        found = bench.run(merges(kind, [name])[0])
        assert set(found["test"]) == set(PART.tasks)
        assert all(-1 <= value <= 1 for value in found["test"].values())
        assert set(bench.ceilings["lda_router"]["routed"]) == set(PART.tasks)


def test_coefficients_are_learned_from_inputs(cache: Cache, made: dict[str, splits.Split]) -> None:
    parts = {task: made[task] for task in PART.tasks}
    options = MergeOptions(grid=(0.3, 1.0), screen=0, costs=False, peers=False)
    bench = SuiteBench(Specialists(PART, cache, parts, "lora", 0), options)
    scale = bench.run(merges("lora", ["task_arithmetic"])[0])["scale"]
    for name, initial in (("match", 0.4), ("match_scale", scale)):
        (row,) = calibrated_rows("lora", [name])
        found = bench.run(replace(row, settings={**row.settings, "steps": 2}))
        assert set(found["test"]) == set(PART.tasks)
        assert found["calibration"]["initial"] == initial
        assert found["calibration"]["loss"][1] < found["calibration"]["loss"][0]
        assert set(found["calibration"]["curve"]) == set(PART.tasks)
    assert not calibrated_rows("full")


def test_masks_are_served_where_no_heads_compete(cache: Cache, made: dict[str, splits.Split]) -> None:
    home = Cache(cache.root.parent, *WHOLE.places)
    for kind, score_name in (("full", "residual"), ("lora", "leading")):
        servers = Servers(Specialists(WHOLE, home, made, kind, 0))
        rows_ = [
            row for row in ROWS if row.name in ("fixed", "paper", "default", "inputs_8", "together_4", "lda")
        ]
        servers.everything(rows_)
        assert sorted(path.name for path in home.served(0, kind, "").iterdir()) == [
            "default",
            "inputs_8",
            "lda",
            "merged",
            "merged-together_4",
            "together_4",
        ]
        found = store.read(home.served(0, kind, "default"))
        assert found is not None
        assert set(found["test"]) == set(WHOLE.tasks)
        for row in ("inputs_8", "together_4"):
            helped = store.read(home.served(0, kind, row))
            assert helped is not None
            assert set(helped["test"]) == set(WHOLE.tasks)
        model = submerge.load(servers.merged(rows_[0]), features=True)
        assert model.router.settings["score"] == score_name


def test_admission(cache: Cache, made: dict[str, splits.Split]) -> None:
    assert Candidate("a", 0.5, 0.9).admitted
    assert not Candidate("a", 0.8, 0.9).admitted, "too much of it"
    assert not Candidate("a", 0.1, 0.19).admitted, "too few points"
    found = admission(Specialists(WHOLE, cache, made, "full", 0))
    assert {one.task for one in found} == set(WHOLE.tasks)
    assert "| a | 0.500 | 0.900 | 56% | +40.0 | yes |" in markdown(
        WHOLE, {"full": [Candidate("a", 0.5, 0.9)]}
    )


def test_suites_contain_each_other() -> None:
    eight, fourteen, twenty = (set(s.tasks) for s in (suites.VISION_8, suites.VISION_14, suites.VISION_20))
    assert eight < fourteen < twenty
    assert [len(tasks) for tasks in (eight, fourteen, twenty)] == [8, 14, 20]
    hetero = suites.HETERO_20.tasks
    assert len(set(hetero)) == 20
    assert {suites.KNOWN[task].kind for task in hetero} == {CLASSES, SCORE, DENSE}
    assert {suites.KNOWN[task].kind for task in twenty} == {CLASSES}
    assert suites.HETERO_20.places[2] == suites.VISION_8.places[2], "one base"
    assert all(task.hub is None or isinstance(task.hub, HubSet) for task in suites.KNOWN.values())


@pytest.mark.parametrize("name", [*NAMED, *MEASURED])
def test_the_folder_of_data_is_read(name: str) -> None:
    folder = os.environ.get("SUBMERGE_DATA")
    if not folder:
        pytest.skip("SUBMERGE_DATA names no folder of data")
    task = suites.KNOWN[name]
    split = splits.load(suites.VISION_20.home, Path(folder), [name])[name]
    assert min(len(split.train), 5 * len(split.validation), 8 * len(split.test)) > 150
    parts = [{row[0] for row in part} for part in (split.train, split.validation, split.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    labels = [row[2] for row in split.train]
    assert {len(row[0]) for row in split.train} <= {1024, 3072}
    if task.kind == CLASSES:
        assert set(labels) == set(range(split.classes))
    elif task.kind == SCORE:
        assert 0 <= min(labels) < max(labels) <= 1
        assert np.std(labels) > 0.1
    else:
        share = np.mean([np.frombuffer(label, np.uint8).mean() for label in labels])
        assert 0.02 < share < 0.6
