"""The benchmark of whole merges: what it times, what it compares, what it keeps, and what its pages say."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("psutil")

from benchmarks.console import silent
from benchmarks.speed import __main__ as command
from benchmarks.speed import outputs, profile, report
from benchmarks.speed.floor import CHUNK, RUN, _steps, copy
from benchmarks.speed.models import EIGHT, SIZES, TUNED, make_models, weights_file
from benchmarks.speed.recipes import METHODS, timed_recipes
from benchmarks.speed.results import Part, open_results
from benchmarks.speed.rows import BARRED, Row, rows
from benchmarks.speed.sampler import Sampler

import submerge

INDEX = Path(__file__).resolve().parents[2] / "docs" / "methods" / "index.md"
MACHINE = {
    "cpu": "a",
    "cores": 2,
    "memory_gb": 1,
    "system": "b",
    "python": "3",
    "versions": {"torch": "2"},
}


def runs(*seconds: float, **more: Any) -> dict[str, Any]:
    """Return a result of a tool."""
    return {"runs": [{"seconds": s} | more for s in seconds], "measured": "2026-01-01 00:00"}


@pytest.fixture
def results() -> dict[str, Any]:
    """Results of TIES in three floors of one pass, 40 times as fast as mergekit, at too high a peak."""
    ours = runs(2.0, 2.5, 9.0, cpu_seconds=4.0, peak_bytes=4e8, private_bytes=1e8, bytes_read=9.6e9)
    for run in ours["runs"]:
        run["seconds_inside"] = 2.0
    part = {
        "models": 3,
        "dtype": "bfloat16",
        "commands": ["python -m benchmarks.speed"],
        "floors": {"4": {"1": runs(1, seconds_inside=1.0), "2": runs(1, seconds_inside=1.5)}},
        "methods": {
            "ties": {
                "inputs": 4,
                "passes": 2,
                "draws": False,
                "mergekit": runs(100.0, peak_bytes=12e9),
                "submerge": ours | {"digests": ["x"], "compared": 4, "agreement": 0.98},
            }
        },
    }
    head = {"command": "python -m benchmarks.speed", "date": "2026-01-01", "machine": MACHINE}
    return head | {"size": "1.1b", "parameters": 10**9, "threads": 2, "parts": {BARRED: part}}


def test_the_floor_reads_as_often_as_told_and_writes_once(tmp_path: Path) -> None:
    files = []
    for number, size in enumerate((RUN + CHUNK // 2, RUN)):
        files.append(tmp_path / f"{number}")
        files[-1].write_bytes(bytes([number + 1]) * size)
    assert copy([str(file) for file in files], str(tmp_path / "out"), 2, passes=2) > 0
    assert (tmp_path / "out").read_bytes() == files[0].read_bytes()
    steps = list(_steps(RUN + CHUNK // 2, 2))
    places = list(range(0, RUN + CHUNK // 2, CHUNK))
    assert sorted(position for position, _ in steps) == sorted(places * 2)
    assert [position for position, writes in steps if writes] == places
    assert all(not writes for _, writes in steps[: RUN // CHUNK])


def test_recipes_have_the_passes_that_are_documented() -> None:
    documented = dict(
        re.findall(r"^\| \[`(\w+)`\]\(.*?\) \| [^|]+ \| [^|]+ \| (\d) \|", INDEX.read_text(), re.M)
    )
    assert {name: str(merge.passes) for name, merge in METHODS.items()} == {
        name: documented[name] for name in METHODS
    }


@pytest.mark.parametrize(("tuned", "dtype"), [(TUNED, "bfloat16"), (EIGHT, "float32")], ids=["3", "8"])
def test_recipes_are_of_the_models_that_are_made(tmp_path: Path, tuned: tuple[str, ...], dtype: str) -> None:
    models = make_models(tmp_path, SIZES["tiny"], silent, tuned=tuned, dtype=dtype)
    code = {"bfloat16": "BF16", "float32": "F32"}[dtype]
    with safe_open(weights_file(models["a"]), "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {code}  # noqa: SIM118
    recipes = timed_recipes(tuned, dtype)
    assert set(recipes) == set(METHODS) - (set() if tuned == TUNED else {"slerp", "nuslerp"})
    for merge in recipes.values():
        merge.write(tmp_path / "recipe.yaml", models)
        plan = submerge.plan(str(tmp_path / "recipe.yaml"))
        size = SIZES["tiny"].parameters() * (2 if dtype == "bfloat16" else 4)
        assert plan.bytes_read == len(merge.inputs()) * size


def test_outputs_agree_up_to_roundings_of_their_format(tmp_path: Path) -> None:
    for name, change in (("one", 0.0), ("other", 2**-7)):
        (tmp_path / name).mkdir()
        values = torch.ones(1024, 4096, dtype=torch.bfloat16)
        values[:512] += change
        values[:2] += 8 * change
        save_file(
            {"w": values, "few": torch.ones(9), "empty": torch.ones(0)}, tmp_path / name / "model.safetensors"
        )
    one, other = (outputs.sample(tmp_path / name) for name in ("one", "other"))
    assert [len(one[name]) for name in ("w", "few", "empty")] == [1024, 9, 0]
    assert outputs.agreement(one, other, "bfloat16") == 1031 / 1033
    assert outputs.agreement(one, other, "float32") == 521 / 1033
    assert outputs.agreement(one, {}, "float32") == 0
    outputs.save_sample(one, tmp_path / "sample")
    assert outputs.agreement(one, outputs.load_sample(tmp_path / "sample") or {}, "float32") == 1
    assert outputs.load_sample(tmp_path / "none") is None
    digests = {outputs.digest(tmp_path / name) for name in ("one", "other", "one")}
    assert len(digests) == 2


def test_a_row_has_medians_over_the_floors(results: dict[str, Any]) -> None:
    row = next(rows(results, results["parts"][BARRED]))
    assert (row.ours, row.theirs, row.ratio) == (2.5, 100, 40)
    assert (row.over_floor, row.over_own_floor) == (2, pytest.approx(2 / 1.5))
    assert (row.cpu_ns, row.reads, row.peak_gb) == (4, pytest.approx(1.2), 0.4)


def test_the_page_says_which_bars_are_met(results: dict[str, Any]) -> None:
    page = report.markdown(results)
    assert "| 40.0×; ≥ 40 met |" in page
    assert "| 2.00; ≤ 2.2 met | 12.00 | 0.40; ≤ 0.3 **missed** |" in page
    assert "| 2 | 2.00 | 1.33 | 1.20 | 4.0 | 4.0 | 0.10 | yes, 4 | 98.00%; ≥ 0.95 met |" in page
    assert "| 4 | 1.00 | 1.50 |" in page
    results["parts"] = {"8-bfloat16": results["parts"][BARRED]}
    page = report.markdown(results)  # bars are for three models
    assert "; ≤" not in page.split(report.NOTES)[0]
    assert [len(table.columns) for table in report.tables(results)] == [8]


def test_bars_follow_the_method_and_its_passes() -> None:
    def bar(method: str, passes: int) -> str:
        numbers = dict.fromkeys(Row.__annotations__) | {"method": method, "passes": passes}
        return str(Row(**numbers).bars()["over_floor"])

    assert [bar("linear", 1), bar("ties", 2), bar("sce", 3), bar("della", 2)] == [
        "≤ 1.4",
        "≤ 2.2",
        "≤ 2.2",
        "≤ 3",
    ]


def test_a_run_adds_to_the_results_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    new = {"size": "s", "parameters": 1, "threads": 2, "machine": MACHINE}

    def begin(key: str = "3-x", **other: Any) -> Part:
        def save(results: dict[str, Any]) -> None:
            path.write_text(json.dumps(results))

        number = begun.append(1) or len(begun)
        return open_results(path, new | {"command": f"c{number}"} | other, key, {}, save, silent)

    begun: list[int] = []
    facts = {"inputs": 4}
    part = begin()
    assert part.merge("ties", "mergekit") is None
    part.add_merge("ties", "mergekit", runs(1), facts)
    part.add_floor(4, 1, runs(2))
    part = begin()
    part.add_merge("ties", "submerge", runs(3), facts)
    assert part.merge("ties", "mergekit") == runs(1)
    assert part.floor(4, 1) == runs(2)
    assert part.results["parts"]["3-x"]["commands"] == ["c1", "c2"]
    begin("8-x").add_floor(9, 1, runs(4))
    assert json.loads(path.read_text())["parts"].keys() == {"3-x", "8-x"}
    assert begin(threads=1).results["parts"].keys() == {"3-x"}  # which is empty
    assert begin(machine=MACHINE | {"cores": 8}).merge("ties", "submerge") is None


def test_a_tree_has_shares_and_joins_lone_callees() -> None:
    stacks = [
        (["merge", "read (a.py)", "pread (a.py)"], 60),
        (["merge", "fold", "kernel scale", "line"], 39),
        (["merge"], 1),
    ]
    lines = list(profile.tree_lines(profile.tree(stacks), 100))
    assert lines == ["100.0  merge", " 60.0    read › pread (a.py)", " 39.0    fold › kernel scale › line"]


def test_the_slowest_are_those_of_most_processor_time(results: dict[str, Any]) -> None:
    methods = results["parts"][BARRED]["methods"]
    for number, name in enumerate(("linear", "sce", "della")):
        methods[name] = methods["ties"] | {
            "submerge": runs(1, cpu_seconds=number) | {"digests": ["x"], "compared": 4}
        }
    assert profile.slowest(results) == ["ties", "della", "sce"]


def test_a_sampler_sees_who_works_and_not_who_waits() -> None:
    ended = threading.Event()
    waiting = threading.Thread(target=ended.wait)

    def works() -> None:
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            sum(range(1000))

    waiting.start()
    with Sampler() as sampler:
        works()
    ended.set()
    waiting.join()
    stacks = list(sampler.counts)
    assert any("works" in name for stack in stacks for name in stack)
    assert not any("acquire" in stack[-1] for stack in stacks)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Options for the smallest run."""
    return ["--size", "tiny", "--work", f"{tmp_path / 'work'}", "--out", f"{tmp_path / 'out'}"]


@pytest.mark.slow
def test_a_run_measures_floors_and_merges(tmp_path: Path, arguments: list[str]) -> None:
    assert command.main([*arguments, "--only", "linear", "--only-ours", "--repeat", "1"]) == 0
    results = json.loads((tmp_path / "out" / "speed.json").read_text())
    row = next(rows(results, results["parts"][BARRED]))
    assert (row.method, row.compared, row.digests, row.reads) == ("linear", 2, 1, pytest.approx(1))
    assert "| linear | 3 | – |" in (tmp_path / "out" / "speed.md").read_text()
    assert (tmp_path / "out" / "speed.png").exists()


def test_a_profile_shows_the_fold(tmp_path: Path, arguments: list[str]) -> None:
    assert command.main(["profile", "linear", *arguments]) == 0
    assert "merge (engine/_merge.py)" in (tmp_path / "out" / "speed-profile.md").read_text()
    with pytest.raises(SystemExit, match="unknown: lineal"):
        command.main(["profile", "lineal", *arguments])
