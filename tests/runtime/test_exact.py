"""A routed model's answers are those of the dense reference: same choices, same logits."""

from typing import Any

import pytest
import torch

import submerge
from _mass_reference import answer, routed, selected, site_inputs
from _mass_tasks import Served, make

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["bert", "vit", "llama", "t5"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("transformers")
    return make(request.param, tmp_path_factory.mktemp(request.param))


def one(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1] for name, value in inputs.items()}


def extra(served: Served, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what a forward pass of the whole model takes besides."""
    ids = inputs.get("input_ids")
    return {"decoder_input_ids": ids[:, :4]} if served.kind == "t5" and ids is not None else {}


def sites_of(served: Served) -> list[list[str]]:
    if served.sites:
        return served.sites
    model = served.tuned[0]
    names = [
        n.removesuffix(".weight") for n in served.reference.triplets if ".layers." in n or ".layer." in n
    ]
    names = [n for n in names if n.endswith(("proj", "fc1", "fc2", "dense", "query", "key", "value"))]
    seen = site_inputs(model, names, one(served.inputs(0, 2), 0))
    groups: list[list[str]] = []
    for name in seen:
        if groups and seen[groups[-1][0]] is seen[name]:
            groups[-1].append(name)
        else:
            groups.append([name])
    served.sites = groups
    return groups


def encoder(served: Served) -> Any:
    return served.tuned[0]


def scores(served: Served, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    pool = "tokens" if served.kind == "vit" else "mean"
    pool = more.pop("pool", pool)
    return routed(
        served.reference,
        encoder(served),
        more.pop("sites", sites_of(served)),
        inputs | extra(served, inputs),
        pool=pool,
        **more,
    )


def same_logits(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    width = wanted.shape[-1]
    assert found[..., width:].eq(-torch.inf).all()
    error = (found[..., :width] - wanted).abs().amax(-1)
    assert (error if mask is None else error[mask.bool()]).max() <= TOLERANCE


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
    model = submerge.load(served.merged("default"), select="threshold", threshold=0.25)
    inputs, labels = served.mixed(each=3)
    out = model(**inputs, **extra(served, inputs))
    sizes = {len(some) for some in out.routing.selected}
    assert len(sizes) > 1, "sets of several sizes"
    for row in range(len(labels)):
        some = one(inputs, row)
        wanted = scores(served, some)
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
