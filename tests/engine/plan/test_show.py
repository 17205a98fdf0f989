"""A plan as it is printed, and as a notebook shows it."""

from html.parser import HTMLParser
from pathlib import Path

import submerge
from _models import ROOM, family, perturbed, state, write
from submerge.engine.plan._show import ModelRow, as_html, as_text
from submerge.errors import size


class Cells(HTMLParser):
    """The texts of all cells; every element that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_a_plan_is_a_few_lines(tmp_path: Path) -> None:
    base = state({f"model.layers.{i}.mlp.weight": (8, 6) for i in range(60)})
    models = family(tmp_path)
    write(models.base, base)
    tuned = [write(tmp_path / f"tuned-{i}", perturbed(base, i)) for i in range(9)]
    entries = [{"model": str(folder)} for folder in tuned]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(models.base), "models": entries}
    plan = submerge.plan(recipe | {"parameters": {"weight": 1}}, ROOM)
    lines = repr(plan).splitlines()
    assert len(lines) <= 10
    assert len(repr(plan)) < 2000
    assert lines[0] == "MergePlan: task_arithmetic"
    words = dict(line.split(maxsplit=1) for line in lines[1:])
    assert words["base"].startswith(f"{models.base} (60 tensors, ")
    assert words["merged"].endswith(" and 5 more")
    assert words["tensors"] == "merge: 60"
    assert words["writes"].endswith(": model.safetensors")
    assert str(plan) == repr(plan)


def test_a_notebook_shows_tables(tmp_path: Path) -> None:
    models = family(tmp_path / "a & <b>")
    plan = submerge.plan(models.write_recipe("ties"), ROOM)
    cells = Cells(plan._repr_html_()).cells
    for model in (models.base, *models.tuned):
        assert str(model) in cells
    assert cells.count("merged") == len(models.tuned)
    peak = size(plan.budget.peak)  # what the process takes already is part of it, so any unit may come out
    assert f"at most {peak} with {plan.budget.workers} workers" in cells


def test_what_the_package_shows_of_itself() -> None:
    assert dir(submerge) == sorted(submerge.__all__)
    assert submerge.methods.find_method("Model-Stock") is submerge.methods.METHODS["model_stock"]
    assert repr(submerge.methods.METHODS).startswith(f"<{len(submerge.methods.METHODS)} methods: linear, ")


ROWS = [ModelRow("base", "base", "3", "1 kB"), *(ModelRow(name, "merged", "2", "9 B") for name in "abcde")]
MERGED = ", ".join(f"{name} (2 tensors, 9 B)" for name in "abcd")


def test_models_of_one_role_share_a_line() -> None:
    assert as_text("A plan", ROWS, [("reads", "1 kB"), ("warnings", "none")]).splitlines() == [
        "A plan",
        "  base      base (3 tensors, 1 kB)",
        f"  merged    {MERGED} and 1 more",
        "  reads     1 kB",
        "  warnings  none",
    ]


def test_what_stands_in_a_table_is_no_markup() -> None:
    html = as_html("<b>", "a < b & c", [ROWS[0]._replace(name="<i>")], [("why", "x > y")])
    assert {"<b>", "a < b & c", "<i>", "x > y"} <= set(map(str.strip, Cells(html).cells))
