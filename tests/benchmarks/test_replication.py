"""The replication bench: splits, heads, tuning, and a whole run on tiny models with made-up tasks."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("psutil")
pytest.importorskip("matplotlib")

from benchmarks.replication import __main__ as command
from benchmarks.replication import cache as store
from benchmarks.replication import jobs, methods, plots, report, splits, steps, text, train
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache
from benchmarks.replication.calibrated import CALIBRATED
from benchmarks.replication.ceilings import factors, lda, route
from benchmarks.replication.heads import Head, logits, loss, predict, score, shots
from benchmarks.replication.merge import SuiteBench
from benchmarks.replication.routing.measure import Servers
from benchmarks.replication.routing.rows import ROWS
from benchmarks.replication.routing.smile import Smile
from benchmarks.replication.rows import CLASSES, SCORE, HubSet, Rows, SuiteTask, seed_of
from benchmarks.replication.scores import summary
from benchmarks.replication.sentences import Sentences
from benchmarks.replication.specialists import Specialists
from benchmarks.replication.suite import Base, Suite, Training
from benchmarks.replication.tune import tune

import submerge
from _models import quiet_transformers
from benchmarks import page
from submerge.methods import METHODS

WORDS = [f"w{i}" for i in range(24)]
NOWHERE = HubSet("none/none", ("text",), "label")


def _colours(_: Path) -> tuple[Rows, Rows]:
    """Return sentences whose class is the third of the vocabulary that most words come from."""
    draw = torch.Generator().manual_seed(0)
    rows: Rows = []
    for number in range(150):
        some = torch.randint(8, (6,), generator=draw) + 8 * (number % 3)
        rows.append((" ".join(WORDS[i] for i in some), None, number % 3))
    return rows[:110], rows[110:]


def _overlap(_: Path) -> tuple[Rows, Rows]:
    """Return pairs whose score is the share of words that both have."""
    draw = torch.Generator().manual_seed(1)
    rows: Rows = []
    for number in range(150):
        first = torch.randint(24, (4,), generator=draw).tolist()
        other = torch.randint(24, (4,), generator=draw).tolist()
        second = first[: number % 5] + other[number % 5 :]
        pair = [" ".join(WORDS[i] for i in some) for some in (first, second)]
        rows.append((pair[0], pair[1], number % 5 / 4))
    return rows[:110], rows[110:]


def _write_base(folder: Path) -> None:
    t = quiet_transformers()
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = t.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    t.BertModel(config).save_pretrained(folder)
    t.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)


KNOWN = {
    "colours": SuiteTask("colours", _colours, NOWHERE),
    "overlap": SuiteTask("overlap", _overlap, NOWHERE, SCORE),
}
SUITE = Suite(
    name="tiny",
    known=KNOWN,
    tasks=("colours", "overlap"),
    trainings={
        "full": Training(steps=12, rate=2e-3, batch=8),
        "lora": Training(steps=12, rate=1e-3, rank=4, alpha=8, batch=8),
    },
    base=Base(_write_base),
    domain=Sentences(),
    validation=30,
    test=20,
    shots=4,
    generic=10,
    router_shots=20,
)


@pytest.fixture(scope="module")
def made() -> dict[str, splits.Split]:
    return splits.load(SUITE, Path())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, made: dict[str, splits.Split]) -> Cache:
    quiet_transformers()
    place = Cache(tmp_path_factory.mktemp("replication"), SUITE.name)
    train.write_base(SUITE, place)
    train.heads(SUITE, place, lambda: made, 0)
    heads = train.load_heads(SUITE, place, made, 0)
    for kind in SUITE.trainings:
        for task, split in made.items():
            train.specialist(SUITE, place, split, heads[task], kind, 0)
    return place


def test_splits_are_fixed_and_apart(made: dict[str, splits.Split]) -> None:
    again = splits.load(SUITE, Path())
    assert again == made
    for split in made.values():
        parts = [{row[:2] for row in part} for part in (split.train, split.validation, split.test)]
        assert [len(split.validation), len(split.test)] == [30, 20]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
    assert (made["colours"].classes, made["overlap"].classes) == (3, 0)


def test_classes_may_be_called_anything() -> None:
    task = SuiteTask("any", _colours, NOWHERE)
    for labels in (["good", "bad", "ugly"], [7, -2, 40], [True, False, True]):
        rows: Rows = [(f"text {i}", None, labels[i % 3]) for i in range(30)]
        found = splits.split(task, rows, [("test", None, labels[0])], SUITE)
        names = sorted(set(labels))
        assert found.classes == len(names)
        for row in (*found.train, *found.validation):
            assert names[int(row[2])] == labels[int(str(row[0]).split()[1]) % 3]
        assert found.test == [("test", None, names.index(labels[0]))]


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (CLASSES, ["a", "a", "b", 1], "some labels are texts and some are numbers"),
        (CLASSES, ["a", "b", "a", "c"], "no training row has the labels ['c'] of the test"),
        (CLASSES, ["a", "a", "a", "a"], "all rows have the label 'a'"),
        (CLASSES, ["a", None, "b", "a"], "training row 1: the label None is no class: write texts"),
        (CLASSES, [0.5, 0, 1, 1], "training row 0: the label 0.5 is no class: for a task of numbers"),
        (SCORE, [0.5, 0.1, 1, 5.0], "test row 0: the label 5.0 is no number in [0, 1]"),
        (SCORE, [0.5, "good", 1, 0], "training row 1: the label 'good' is no number"),
        (SCORE, [0.5, float("nan"), 1, 0], "training row 1: the label nan is no number"),
    ],
)
def test_labels_that_are_none_are_told(kind: str, labels: list[Any], message: str) -> None:
    rows: Rows = [(f"text {i}", None, label) for i, label in enumerate(labels)]
    with pytest.raises(SystemExit) as error:
        splits.split(SuiteTask("mine", _colours, NOWHERE, kind), rows[:3], rows[3:], SUITE)
    assert message in str(error.value)
    assert str(error.value).startswith("mine: ")


OWN = """
from pathlib import Path
from benchmarks.replication.sentences import Sentences
from benchmarks.replication.suite import Base, Suite, SuiteTask, Task, Training
import json
from transformers import BertConfig, BertModel, BertTokenizer

def _write_base(folder):
    words = json.loads((Path(__file__).parent / "words.json").read_text())
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=32)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)

def _read(root, *, part):
    lines = (root / "all.tsv").read_text().splitlines()
    rows = [(text, None, label) for text, label in (line.split("\\t") for line in lines)]
    return rows[part : part + 60], rows[part + 60 : part + 80]

def first(root):
    return _read(root, part=0)

def second(root):
    return _read(root, part=80)

MINE = Suite(
    name="mine",
    known={"first": SuiteTask("first", first), "second": Task("second", second)},
    tasks=("first", "second"),
    trainings={"full": Training(steps=4, rate=2e-3, batch=8)},
    base=Base(_write_base), domain=Sentences(), validation=10, test=10, shots=2, generic=5, seeds=1,
    router_shots=5,
)
HALF = MINE.part("half", ("first",))
"""


def test_a_suite_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file anywhere, with data beside it, and classes that have names."""
    monkeypatch.delenv("SUBMERGE_DATA", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(train, "EVERY", 0.0)
    (tmp_path / "my_tasks.py").write_text(OWN)
    (tmp_path / "words.json").write_text(json.dumps(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    lines = [
        f"{' '.join(WORDS[8 * (i % 3) :][:4])} {WORDS[i % 24]} {WORDS[i // 7]}\t{'abc'[i % 3]}"
        for i in range(160)
    ]
    (tmp_path / "all.tsv").write_text("\n".join(lines))
    own = f"{tmp_path / 'my_tasks.py'}:MINE"
    more = ["--cache", str(tmp_path / "cache"), "--jobs", "1", "--out", str(tmp_path)]
    assert command.main(["train", own, *more]) == 0
    shown = capsys.readouterr().err
    assert "full seed 0 second: 3 of 4 steps, loss" in shown
    suite = command._options(["train", "my_tasks:MINE"]).named
    place = Cache(tmp_path / "cache", "mine")
    found = Servers(Specialists(suite, place, splits.load(suite, None), "full", 0)).run(ROWS[-1])
    assert found["test"].keys() == {"first", "second"}
    assert pickle.loads(pickle.dumps(suite)) == suite, "as processes that are started anew get it"
    for wrong, message in (
        (f"{tmp_path / 'my_tasks.py'}:YOURS", "has no suite YOURS; it has MINE, HALF"),
        (f"{tmp_path / 'my_tasks.py'}:HALF", "nothing to merge in fewer than two tasks"),
        (f"{tmp_path / 'no_tasks.py'}:MINE", "there is no file"),
        ("no_such_module:MINE", "cannot be imported"),
        ("text-9", "is no suite of the bench"),
    ):
        with pytest.raises(SystemExit):
            command._options(["train", wrong])
        assert message in capsys.readouterr().err


def test_a_class_that_is_not_left_for_training_is_told() -> None:
    rows: Rows = [(f"text {i % 4}", None, "b" if i % 4 else "a") for i in range(40)]
    with pytest.raises(SystemExit, match="of 3 different rows none of the classes"):
        splits.split(SuiteTask("mine", _colours), rows, [("text 0", None, "a")], SUITE)


def test_a_small_pool_keeps_two_thirds_for_training() -> None:
    rows: Rows = [(f"text {i}", None, i % 2) for i in range(30)]
    found = splits.split(KNOWN["colours"], rows, [("test", None, 0), rows[0]], SUITE)
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 9, 2)


def test_shots_are_of_their_class_or_end(made: dict[str, splits.Split]) -> None:
    found = shots(made["colours"].train, CLASSES, 3, 4, seed=0)
    assert [{row[2] for row in rows} for rows in found] == [{0}, {1}, {2}]
    assert [len(rows) for rows in found] == [4, 4, 4]
    low, high = shots(made["overlap"].train, SCORE, 0, 4, seed=0)
    assert max(row[2] for row in low) < min(row[2] for row in high)
    with pytest.raises(ValueError, match="no training rows"):
        shots(made["colours"].train, CLASSES, 5, 4, seed=0)


def test_a_head_finds_the_class_mean() -> None:
    examples = [torch.eye(4)[i].expand(3, 4) for i in range(4)]
    head = Head.of(torch.full((4,), 0.25), examples)
    assert predict(head, torch.eye(4)).tolist() == [0, 1, 2, 3]
    assert loss(head, torch.eye(4), torch.arange(4)) < 0.01
    ends = Head.of(torch.full((4,), 0.25), examples[:2], kind=SCORE)
    low, between, high = predict(ends, torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])).tolist()
    assert low < 0.01
    assert between == pytest.approx(0.5)
    assert high > 0.99
    assert loss(ends, torch.eye(4)[:2], torch.tensor([0.0, 1.0])) < 0.01


def test_scores() -> None:
    assert score(CLASSES, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)
    assert score(SCORE, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.5, 1.0])) == pytest.approx(1)
    assert score(SCORE, torch.full((3,), 0.5), torch.tensor([0.0, 0.5, 1.0])) == 0
    found = summary({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9})
    assert (found["mean"], found["worst"], found["worst_task"]) == (0.75, 0.5, "a")


def test_tuning_takes_the_best_and_screens_first() -> None:
    asked: list[float] = []

    def full(scale: float) -> float:
        asked.append(scale)
        return -abs(round(10 * scale) - 4)

    grid = (0.02, 0.1, 0.3, 0.5, 1.0)
    assert tune(grid, full).scale == 0.3, "of equal ones the smaller"
    assert sorted(asked) == list(grid)
    asked.clear()
    choice = tune(grid, full, lambda scale: -scale, finalists=2)
    assert asked == [0.02, 0.1]
    assert (choice.scale, choice.at_end) == (0.1, "")
    assert tune(grid, lambda scale: scale).at_end == "high"


def test_a_screening_ends_where_scales_are_hopeless_and_looks_beside_the_best() -> None:
    seen = {0.02: 0.5, 0.05: 0.7, 0.1: 0.8, 0.3: 0.9, 0.5: 0.75, 1.0: 0.7, 2.0: 0.3, 3.0: 0.99}
    choice = tune(tuple(seen), seen.__getitem__, seen.__getitem__)
    assert list(choice.screened) == [0.02, 0.05, 0.1, 0.3, 0.5, 2.0]
    assert (choice.scale, choice.at_end) == (0.3, "")


def test_a_screening_from_a_known_scale_climbs() -> None:
    seen = {0.02: 0.5, 0.05: 0.7, 0.1: 0.8, 0.3: 0.9, 0.5: 0.75, 1.0: 0.7, 2.0: 0.3, 3.0: 0.99}
    choice = tune(tuple(seen), seen.__getitem__, seen.__getitem__, near=0.05)
    assert list(choice.screened) == [0.02, 0.05, 0.1, 0.3, 0.5]
    assert choice.scale == 0.3
    assert tune(tuple(seen), seen.__getitem__, seen.__getitem__, near=2.0).at_end == "high"


def test_lda_separates_what_can_be_separated() -> None:
    draw = torch.Generator().manual_seed(0)
    groups = [torch.randn(30, 8, generator=draw) + 4 * torch.eye(8)[i] for i in range(3)]
    router = lda(groups)
    right = [(route(router, group) == i).double().mean().item() for i, group in enumerate(groups)]
    assert min(right) > 0.9


def test_an_update_is_as_large_as_its_factors() -> None:
    base = {"w": torch.zeros(4, 6), "same": torch.zeros(4, 6), "norm": torch.zeros(4)}
    assert factors(base, base | {"w": torch.ones(4, 6), "norm": torch.ones(4)}, 2) == 2 * (4 + 6) + 4


def test_features_do_not_depend_on_the_batch(cache: Cache, made: dict[str, splits.Split]) -> None:
    domain = Sentences(max_tokens=16)
    model = domain.load(cache.base, cache.base)
    rows = made["overlap"].test
    whole = domain.features(model, domain.items(rows, cache.base))
    single = torch.cat([domain.features(model, domain.items([row], cache.base)) for row in rows])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(len(rows)))


def test_a_finished_training_is_not_done_again(
    cache: Cache, made: dict[str, splits.Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = train.load_heads(SUITE, cache, made, 0)
    before = store.read(cache.specialist(0, "full", "colours"))
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it was trained again"))
    split = made["colours"]
    assert train.specialist(SUITE, cache, split, heads["colours"], "full", 0) == before
    longer = SUITE.cut(trainings={"full": replace(SUITE.trainings["full"], steps=13)})
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        train.specialist(longer, cache, split, heads["colours"], "full", 0)
    assert store.read(cache.specialist(0, "full", "colours")) == before, (
        "what is there stays until it is replaced"
    )


def test_training_is_repeatable(cache: Cache, made: dict[str, splits.Split], tmp_path: Path) -> None:
    other = Cache(tmp_path, SUITE.name)
    train.write_base(SUITE, other)
    train.heads(SUITE, other, lambda: made, 0)
    heads = train.load_heads(SUITE, other, made, 0)
    train.specialist(SUITE, other, made["colours"], heads["colours"], "lora", 0)
    files = [place.specialist(0, "lora", "colours") / "adapter_model.safetensors" for place in (cache, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_whole_run(
    cache: Cache, made: dict[str, splits.Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, names, screen in (("full", ["linear", "tsv_m"], 10), ("lora", ["ties", "cat"], 0)):
        options = MergeOptions(grid=(0.3, 1.0), screen=screen, costs=False, peers=True)
        bench = SuiteBench(Specialists(SUITE, cache, made, kind, 0), options)
        rows = [replace(row, mergekit=False) for row in methods.rows(kind, names)]
        rows += methods.sequence_rows(kind)
        found = {row.name: bench.run(row) for row in rows}
        assert {row.name: bench.run(row) for row in rows} == found, "the second time from the cache"
        for row in rows:
            folder = cache.result(0, kind, row.name)
            assert (folder / "recipe.yaml").exists() == (row.name in names)
            assert not (folder / "merged").exists()
    kinds = report.gather(SUITE, cache, [0], None)
    of_adapters = kinds["lora"]["0"]["methods"]
    assert list(of_adapters) == ["ties", "cat", "many", "many_default"]
    individual = kinds["lora"]["0"]["ceilings"]["individual"]["validation"]
    at_default = summary(of_adapters["many_default"]["validation"], individual)["mean"]
    assert of_adapters["many"]["curve"]["validation"]["1.0"] == pytest.approx(at_default)
    assert kinds["lora"]["0"]["outdated"] == []
    cat = of_adapters["cat"]
    ours, peer = cat["summary"]["scores"], cat["parity"]["peft"]["summary"]["scores"]
    assert ours == pytest.approx(peer), "PEFT's cat is the same sum"
    results = {"name": "tiny", "command": "…", "date": "…", "suite": SUITE.facts(), "kinds": kinds}
    machine = {"cpu": "…", "cores": 1, "memory_gb": 1, "system": "…", "python": "3", "versions": {}}
    page = report.markdown(results | {"machine": machine}, report.tables(results), report.work(kinds))
    assert "LDA router" in page
    work = re.search(r"Work\. full fine-tunes: 2 trained in \d+ min, (\d+) rows merged", page)
    assert work is not None
    assert work[1] == "3", "two merges, and the ceilings"
    assert str(cache.root) not in json.dumps(results), "no path of this machine"
    assert all(path.stat().st_size for path in plots.draw(results, tmp_path, "tiny"))
    changed = replace(methods.rows("lora", ["ties"])[0], each={"weight": 1.0, "density": 0.5})
    monkeypatch.setattr(report, "rows", lambda *_: [changed])
    kinds = report.gather(SUITE, cache, [0], None)
    assert kinds["lora"]["0"]["outdated"] == ["ties"]
    said: list[str] = []
    monkeypatch.setattr(steps, "say", said.append)
    steps._say_outdated(kinds)
    assert said == ["left out, made with other settings: lora seed 0 ties"]


def test_adapters_are_followed_while_they_are_trained(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMERGE_DATA", str(tmp_path))
    options = Namespace(seeds=[0], jobs=1, threads=torch.get_num_threads(), out=tmp_path, fast=False)
    steps.follow(SUITE.cut(observed=("colours", "overlap"), paces=(1.0,)), cache, options)
    found = json.loads((tmp_path / "replication-tiny-observation.json").read_text())["observed"]
    assert list(found) == ["colours, 0.001", "overlap, 0.001"]
    for one in found.values():
        assert list(one["accuracy"]) == ["0", "1", "3", "6", "9", "12"]
        for by_step in one["omega"].values():
            assert list(by_step) == ["1", "3", "6", "9", "12"]
            assert all(0 < omega < 1 for omegas in by_step.values() for omega in omegas)
        last = one["omega"]["all"]["12"]
        assert last[0] != last[-1], "the adapter acts"
    assert "| colours, 0.001 | 12 |" in (tmp_path / "replication-tiny-observation.md").read_text()
    assert (tmp_path / "replication-tiny-observation.png").stat().st_size
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it was trained again"))
    steps.follow(SUITE.cut(observed=("colours",), paces=(1.0,)), cache, options)
    with pytest.raises(SystemExit, match="observes no task"):
        steps.follow(SUITE, cache, options)


def test_what_every_merge_writes_is_a_recipe(tmp_path: Path) -> None:
    from submerge import load_recipe

    for kind in ("full", "lora"):
        assert methods.rows(kind, methods.FAST), "of --fast"
        assert "ssam_half" not in [row.name for row in methods.rows(kind, rank=8)], "that is the default"
        for row in methods.rows(kind):
            scale = 0.5 if row.factor else None
            path = row.write(tmp_path / "r.yaml", Path("base"), [Path("a"), Path("b")], scale, kind)
            assert load_recipe(path).method.name == (row.method or row.name)


def test_methods_that_are_not_compared_are_few() -> None:
    from submerge.methods import METHODS

    compared = {
        row.method or row.name for row in (*methods.ROWS, *methods.sequence_rows("lora"), *CALIBRATED)
    }
    others = {
        "slerp",
        "nuslerp",
        "multislerp",
        "nearswap",
        "arcee_fusion",
        "ram",
        "ramplus_tl",
        "passthrough",
        "mass",
        "regmean",
    }
    assert set(METHODS) - compared == others, "ROWS of benchmarks/replication/methods.py, or a name here"


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = command._options(["merge", "text-8", "--fast", "--cache", str(tmp_path)])
    suite, place = command._suite(options)
    assert (suite.name, options.seeds, len(suite.tasks)) == ("text-8-fast", range(1), 3)
    assert place.root == tmp_path / "text-8-fast"
    options.kinds = ["lora"]
    assert (steps._kinds(suite, options), list(suite.trainings)) == (["lora"], ["full", "lora"])
    other, _ = command._suite(command._options(["train", "text-8", "--tasks", "mr,cola"]))
    assert (other.name, other.tasks, other.validation) == ("text-8-mr-cola", ("mr", "cola"), 300)
    assert page.command(["train", "text-8", "--cache", "here", "--seeds", "2", "--out=there"]) == (
        "python -m benchmarks.replication train text-8 --seeds 2"
    )
    with pytest.raises(SystemExit):
        command._options(["train", "text-8", "--methods", "tie"])
    assert "unknown: tie" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="nothing to report"):
        steps.STEPS["report"](suite, place, options)


def test_jobs_run_in_processes_of_their_own() -> None:
    with pytest.raises(ZeroDivisionError):
        jobs.run_all(divmod, [(1, 1), (1, 0)], at_once=2)
    assert "__main__" not in steps._train_one.__module__, "such a process could not find it"


def test_the_suite_stands_for_sets_on_the_hub() -> None:
    assert len(text.TEXT_8.tasks) == 8
    assert set(text.TEXT_8.tasks) <= set(text.KNOWN)
    assert all(task.hub and "/" in task.hub.repo for task in text.KNOWN.values())
    assert {name for name, task in text.KNOWN.items() if task.kind == SCORE} == {"sick_rel", "stsb"}
    assert seed_of(0, "a") != seed_of(1, "a") != seed_of(0, "b")


def test_the_folder_of_data_is_read() -> None:
    import os

    folder = os.environ.get("SUBMERGE_DATA")
    if not folder:
        pytest.skip("SUBMERGE_DATA names no folder of data")
    for name, task in text.KNOWN.items():
        pool, test = task.read(Path(folder))
        assert len(pool) > 2000, name
        assert len(test) >= 500, name
        labels = [row[2] for row in pool]
        assert 0 <= min(labels)
        if task.kind == SCORE:
            assert max(labels) <= 1
        else:
            assert set(labels) == set(range(max(labels) + 1)), name


NAMES = {row.name: row for row in ROWS}


def test_rows_are_told_apart_and_their_settings_are_known() -> None:
    assert len(NAMES) == len(ROWS)
    for row in ROWS:
        for name, value in row.settings.items():
            option = METHODS["mass"].option(name)
            assert option is not None, name
            assert option.check(value) == value


def test_smile_of_one_task_is_its_fine_tune() -> None:
    t = quiet_transformers()
    torch.manual_seed(0)
    config = t.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    base = t.BertModel(config, add_pooling_layer=False).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = {"input_ids": torch.randint(30, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    with torch.no_grad():
        wanted = tuned(**batch).last_hidden_state
    hidden, tasks = Smile(copy.deepcopy(base), [tuned], rank=16, gate=4)(batch)
    assert torch.allclose(hidden, wanted, atol=1e-5)
    assert tasks.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["fixed", "smile", "several", "form", "group", "one", "lda"])
def test_every_way_is_scored(name: str, cache: Cache, made: dict[str, splits.Split]) -> None:
    found = Servers(Specialists(SUITE, cache, made, "full", 0)).run(NAMES[name])
    for part in ("validation", "test"):
        assert set(found[part]) == set(made)
        assert all(0 <= share <= 1 for share in found[f"routed {part}"].values())


def test_serving_is_measured(
    cache: Cache, made: dict[str, splits.Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.serving import measure, report

    monkeypatch.setattr(measure, "SIZES", (2,))
    monkeypatch.setattr(measure, "COMPRESSIONS", ("auto",))
    bench = measure.ServingBench(Specialists(SUITE, cache, made, "full", 0), lambda _: None)
    results: dict[str, Any] = {"latency": bench.latency(4, 1), "sets": bench.sets(1), "batch": 4}
    assert results["latency"]["greatest difference to dense"] < 1e-4
    results |= {"compression": bench.compression(10), "items": 10, "threads": 1, "load_before": 0.0}
    assert set(results["compression"]["auto"]["tasks"]) == set(made)
    bench.clean()
    assert not bench.place.exists()
    machine = {"cpu": "…", "cores": 1, "system": "…", "python": "3", "versions": {}}
    shown = report.markdown(results | {"command": "…", "date": "…", "machine": machine})
    assert "| the paper's preset, dense |" in shown
    report.draw(results, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size


@pytest.mark.parametrize("name", ["residual", "default", "form", "group"])
def test_a_row_that_runs_one_task_is_what_the_model_answers(
    name: str, cache: Cache, made: dict[str, splits.Split]
) -> None:
    row, servers = NAMES[name], Servers(Specialists(SUITE, cache, made, "full", 0))
    found = servers.run(row)
    model = submerge.load(servers.merged(row), features=True, **row.settings)
    for task in made:
        items = servers.scorer.items["test"][task]
        batch = items.batch(range(len(items)))
        prior = None
        if row.head_evidence:
            base = SUITE.domain.load(cache.base, cache.base)
            features = SUITE.domain.means(base(**batch).last_hidden_state, batch)
            said = [logits(servers.heads[one], features).exp().sum(-1).log() for one in made]
            known = [i for i, one in enumerate(made) if made[one].kind == CLASSES]
            mean = torch.stack([said[i] for i in known]).mean(0)
            prior = torch.stack([one if i in known else mean for i, one in enumerate(said)], 1)
        out = model(**batch, group=[i // row.group for i in range(len(items))], prior=prior)
        right = torch.tensor([one == task for one in out.tasks])
        told = predict(servers.heads[task], SUITE.domain.means(out.last_hidden_state, batch))
        wrong = torch.full_like(told, 0.5 if told.is_floating_point() else -1)
        wanted = servers.scorer.of(torch.where(right, told, wrong), "test", task)
        assert found["test"][task] == pytest.approx(wanted, abs=1e-6)
        assert found["routed test"][task] == pytest.approx(right.double().mean().item())
