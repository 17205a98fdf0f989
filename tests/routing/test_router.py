"""What a router finds for the inputs of a batch, and what its settings change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _mass_reference import answer, routed, selected
from _mass_tasks import Served, make, one
from _models import ROOM

pytest.importorskip("transformers")


def test_route_says_what_a_pass_does(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    out, routing = model(**inputs), model.route(**inputs)
    assert routing.tasks == out.tasks
    assert torch.equal(routing.coefficients, out.coefficients)
    assert out.coefficients.shape == (8, 4)
    assert (out.coefficients.sum(1) - 1).abs().max() < 1e-6
    assert routing.selected == [(name,) for name in routing.tasks]


def test_the_first_pass_ends_at_the_last_site(bert: Served) -> None:
    inputs, _ = bert.mixed()
    whole = submerge.load(bert.merged("default"), head_evidence="none")
    early = submerge.load(bert.merged("default"), head_evidence="none", routing_layers="first:1")
    seen = []
    early.bert.encoder.layer[1].register_forward_pre_hook(lambda *_: seen.append(1))
    early.route(**inputs)  # explores the model once
    seen.clear()
    routing = early.route(**inputs, details=True)
    assert not seen, "the second layer is not run"
    assert routing.residuals.shape == (4, 8, 4)
    full = whole.route(**inputs, details=True).residuals
    assert torch.equal(routing.residuals, full[:4]), "what was seen is what the whole pass sees"


def test_groups_get_one_decision(model: Any, bert: Served) -> None:
    inputs, labels = bert.mixed(each=4)
    names = [f"task{t}" for t in labels]
    assert model.route(**inputs, group=names).tasks == [
        dict(zip(names, model.route(**inputs, group=names).tasks, strict=True))[n] for n in names
    ]
    scores = model.route(**inputs).scores
    grouped = model.route(**inputs, group=labels).scores
    for t in set(labels):
        rows = [i for i, label in enumerate(labels) if label == t]
        assert (grouped[rows] - scores[rows].mean(0)).abs().max() < 1e-9
    assert len(set(model.route(**inputs, group="batch").tasks)) == 1
    each = model.route(**inputs, group=torch.arange(len(labels)))
    assert each.tasks == model.route(**inputs).tasks, "groups of one are no groups"
    batched = submerge.load(bert.merged("default"), batch="batch")
    assert torch.equal(batched.route(**inputs).scores, model.route(**inputs, group="batch").scores)


def test_forms_leave_tasks_out(bert: Served) -> None:
    recipe = bert.recipe()
    for entry, form in zip(recipe["models"], ("single", "pair", "pair", "any"), strict=True):
        entry["parameters"] = {"form": form}
    out = bert.root / "forms"
    submerge.merge(recipe, out, settings=ROOM)
    model = submerge.load(out)
    inputs, _ = bert.mixed()
    assert set(model.route(**inputs, form="pair").tasks) <= {"task1", "task2", "task3"}
    assert set(model.route(**inputs, form="single").tasks) <= {"task0", "task3"}
    types = torch.zeros_like(inputs["input_ids"])
    types[:4, 5:] = 1
    tasks = model.route(**inputs, token_type_ids=types).tasks
    assert set(tasks[:4]) <= {"task1", "task2", "task3"}
    assert set(tasks[4:]) <= {"task0", "task3"}
    with pytest.raises(submerge.RequestError, match="form"):
        model.route(**inputs, form="triple")


def test_the_papers_preset(bert: Served) -> None:
    """One site of one layer, 1-3 tasks by their shares, the largest logit."""
    model = submerge.load(bert.merged("paper", preset="paper"))
    inputs, labels = bert.mixed(each=3)
    out = model(**inputs)
    assert [site.maps for site in model.router.sites] == [["bert.encoder.layer.1.intermediate.dense"]]
    sites = [["bert.encoder.layer.1.intermediate.dense"]]
    for row in range(len(labels)):
        some = one(inputs, row)
        scores = routed(bert.reference, bert.tuned[0], sites, some)
        tasks = selected(scores)
        assert out.routing.selected[row] == tuple(f"task{t}" for t in tasks)
        logits = {t: answer(bert.reference, bert.tuned[0], tasks, t, some).logits[0] for t in tasks}
        best = max(tasks, key=lambda t: float(logits[t].max()))
        assert out.tasks[row] == f"task{best}"
        width = len(logits[best])
        assert (out.logits[row, :width] - logits[best]).abs().max() < 1e-4
        assert out.logits[row, width:].eq(-torch.inf).all()


def test_the_papers_layer_of_t5(tmp_path: Path) -> None:
    t5 = make("t5", tmp_path, count=2)
    model = submerge.load(t5.merged("paper", preset="paper"))
    found = model.route(**t5.mixed()[0], details=True)
    assert found.sites == ("encoder.block.1.layer.0.SelfAttention.o",)


@pytest.mark.parametrize("select", ["threshold", "weighted"])
def test_the_papers_groups_average_residuals(bert: Served, select: str) -> None:
    """The authors' code averages what each task leaves unexplained, then makes z-scores and shares."""
    model = submerge.load(bert.merged("paper", preset="paper"), select=select)
    inputs, labels = bert.mixed(each=3)
    each = model.route(**inputs, details=True).residuals[0]
    batched = submerge.load(bert.merged("paper", preset="paper"), select=select, batch="batch")
    assert torch.equal(batched.route(**inputs).scores, model.route(**inputs, group="batch").scores)
    grouped, found = model.route(**inputs, group=labels), model.route(**inputs, group="batch")
    everything = range(len(labels))
    some = [(grouped, [i for i in everything if labels[i] == task]) for task in range(4)]
    for routing, rows in [*some, (found, list(everything))]:
        mean = each[rows].mean(0)
        wanted = (mean.mean() - mean) / (mean.std() + 1e-6) if select == "threshold" else -mean
        assert (routing.scores[rows] - wanted).abs().max() < 1e-5
        if select == "threshold":
            assert {routing.selected[i] for i in rows} == {tuple(f"task{t}" for t in selected(wanted))}
    if select == "threshold":
        plain = submerge.load(bert.merged("paper", preset="paper"), group_mean="scores")
        assert (plain.route(**inputs, group="batch").scores - found.scores).abs().max() > 1e-3


@pytest.mark.parametrize("aggregate", ["iso_c", "sum"])
@pytest.mark.parametrize(
    "settings", [{"score": "whitened"}, {"score": "gaussian"}, {"norm": "l1"}, {"pooling": "cls"}]
)
def test_other_routers_and_merges_run(bert: Served, aggregate: str, settings: dict[str, Any]) -> None:
    model = submerge.load(
        bert.merged("default"), aggregate=aggregate, select="weighted", threshold=0.1, **settings
    )
    inputs, _ = bert.mixed()
    out = model(**inputs)
    assert not out.logits.isnan().any()
    assert len(out.tasks) == 8


def test_mahalanobis_chooses_as_l2_does(bert: Served) -> None:
    inputs, _ = bert.mixed()
    plain, other = (
        submerge.load(bert.merged("default"), norm=norm, head_evidence="none")
        for norm in ("l2", "mahalanobis")
    )
    assert (plain.route(**inputs).scores - other.route(**inputs).scores).abs().max() < 1e-4


@pytest.mark.parametrize("first", ["base", "merged"])
def test_the_first_pass_is_the_bases_or_the_merges(bert: Served, first: str) -> None:
    model = submerge.load(bert.merged("default"), first_pass=first, head_evidence="none")
    inputs, _ = bert.mixed()
    out = model(**inputs)
    state = bert.reference.base if first == "base" else None
    for row in range(8):
        some = one(inputs, row)
        wanted = routed(bert.reference, bert.tuned[0], bert.sites, some, first=state)
        assert (out.routing.scores[row] - wanted).abs().max() < 1e-3
        task = int(wanted.argmax())
        logits = answer(bert.reference, bert.tuned[0], [task], task, some).logits[0]
        assert (out.logits[row, : len(logits)] - logits).abs().max() < 1e-4
    bases = [u.base for module in model.controller.gated.modules.values() for u in module.updates.values()]
    if first == "base":
        assert all(base is None for base in bases), "no second copy of the weights is held"


def test_what_the_caller_knows_counts(model: Any, bert: Served) -> None:
    inputs, _ = bert.mixed()
    before = model.route(**inputs)
    nothing = model.route(**inputs, prior=torch.zeros(8, 4))
    assert torch.equal(nothing.scores, before.scores)
    prior = torch.zeros(8, 4)
    prior[:, 2] = 1000
    assert model(**inputs, prior=prior).tasks == ["task2"] * 8
    assert model.route(**inputs, prior=prior).tasks == ["task2"] * 8
    prior = torch.zeros(8, 4).index_fill(1, torch.tensor([0, 3]), -torch.inf)
    assert set(model.route(**inputs, prior=prior).tasks) <= {"task1", "task2"}
    nobody = torch.zeros(8, 4).index_fill(0, torch.tensor([5]), -torch.inf)
    for wrong in (torch.zeros(8, 3), torch.full((8, 4), torch.nan), nobody, -nobody, [0.0] * 4):
        with pytest.raises(submerge.RequestError, match="prior"):
            model.route(**inputs, prior=wrong)
