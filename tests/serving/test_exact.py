"""A routed model's answers are those of the dense reference: same choices, same logits."""

import pytest

import submerge
from _mass_reference import answer, selected
from _mass_tasks import Served, extra, make, one, same_logits, scores, site_scores


@pytest.fixture(scope="module", params=["bert", "vit", "llama", "t5"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("transformers")
    return make(request.param, tmp_path_factory.mktemp(request.param))


def test_the_default_is_the_reference(served: Served) -> None:
    model = submerge.load(served.merged("default"))
    inputs, labels = served.mixed()
    out = model(**inputs, **extra(served, inputs))
    found = [served.paths.index(served.root / name) for name in out.tasks]
    assert len(set(found)) > 1, "the batch mixes tasks"
    for row in range(len(labels)):
        some = one(inputs, row)
        wanted = scores(served, some)
        assert (out.routing.scores[row] - wanted).abs().max() < 1e-3
        task = int(wanted.argmax())
        assert found[row] == task
        reference = answer(served.reference, served.tuned[0], [task], task, some | extra(served, some))
        mask = some["attention_mask"][0] if served.kind == "llama" else None
        same_logits(out.logits[row], reference.logits[0], mask)


def test_sets_of_tasks_are_the_reference(served: Served) -> None:
    settings = {"select": "threshold", "threshold": 0.25, "first_pass": "merged", "head_evidence": "none"}
    model = submerge.load(served.merged("default"), **settings)
    inputs, labels = served.mixed(each=3)
    out = model(**inputs, **extra(served, inputs))
    sizes = {len(some) for some in out.routing.selected}
    assert len(sizes) > 1, "sets of several sizes"
    for row in range(len(labels)):
        some = one(inputs, row)
        wanted = site_scores(served, some)
        tasks = selected(wanted, threshold=0.25)
        assert out.routing.selected[row] == tuple(f"task{t}" for t in tasks)
        head = int(wanted.argmax())
        reference = answer(served.reference, served.tuned[0], tasks, head, some | extra(served, some))
        mask = some["attention_mask"][0] if served.kind == "llama" else None
        same_logits(out.logits[row], reference.logits[0], mask)


def test_a_forced_task_is_its_truncated_model(served: Served) -> None:
    model = submerge.load(served.merged("default"))
    inputs, labels = served.mixed()
    names = [f"task{t}" for t in labels]
    out = model(**inputs, **extra(served, inputs), task=names)
    assert out.tasks == names
    for row, task in enumerate(labels):
        some = one(inputs, row)
        reference = answer(served.reference, served.tuned[0], [task], task, some | extra(served, some))
        mask = some["attention_mask"][0] if served.kind == "llama" else None
        same_logits(out.logits[row], reference.logits[0], mask)
