"""One pass: the blocks that are looked at are those of the fixed merge, and run once."""

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch

import submerge
from _mass_reference import Reference, answer
from _mass_tasks import Served, extra, make, one, same_logits, site_scores, sites_of
from submerge.errors import RequestError

LAYER = re.compile(r"\.(?:layers?|block)\.(\d+)\.")


@pytest.fixture(scope="module", params=["bert", "vit", "llama", "t5"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("transformers")
    return make(request.param, tmp_path_factory.mktemp(request.param))


def is_first(name: str) -> bool:
    """Return whether a parameter belongs to the first block of what is looked at, or lies before it."""
    if "decoder." in name:
        return False
    found = LAYER.search(name)
    return int(found[1]) == 0 if found else "embed" in name


def untied(model: Any) -> Any:
    """Return a copy whose output head, and decoder, may differ from its embeddings."""
    found = copy.deepcopy(model)
    for path in ("lm_head", "decoder.embed_tokens", "encoder.embed_tokens"):
        if any(name == path for name, _ in found.named_modules(remove_duplicate=False)):
            parent, _, leaf = path.rpartition(".")
            setattr(found.get_submodule(parent), leaf, copy.deepcopy(found.get_submodule(path)))
    return found


def reference(served: Served, task: int) -> Reference:
    """Return the reference whose parameters for a task are the fixed merge's in what is first."""
    whole, own = served.reference.plain(), served.reference.merged([task])
    mixed = {name: whole[name] if is_first(name) else own[name] for name in own}
    return dataclasses.replace(served.reference, _known={(task,): mixed})


def test_the_first_blocks_are_shared_and_the_rest_is_the_task(served: Served) -> None:
    model = submerge.load(served.merged("default"), passes="one", routing_layers="first:1")
    inputs, labels = served.mixed()
    out = model(**inputs, **extra(served, inputs))
    found = [int(name.removeprefix("task")) for name in out.tasks]
    assert len(set(found)) > 1, "the batch mixes tasks"
    sites = [group for group in sites_of(served) if is_first(group[0])]
    for row in range(len(labels)):
        some = one(inputs, row)
        wanted = site_scores(served, some, sites=sites)
        assert (out.routing.scores[row] - wanted).abs().max() < 1e-3
        assert found[row] == int(wanted.argmax())
        task = found[row]
        told = answer(
            reference(served, task), untied(served.tuned[0]), [task], task, some | extra(served, some)
        )
        mask = some["attention_mask"][0] if served.kind == "llama" else None
        same_logits(out.logits[row], told.logits[0], mask)


def test_sets_one_after_the_other_answer_the_same(served: Served) -> None:
    model = submerge.load(served.merged("default"), passes="one", routing_layers="first:1")
    inputs, _ = served.mixed(each=3)
    more = extra(served, inputs)
    together = model(**inputs, **more).logits
    model.controller.gated.sequential = True
    assert torch.allclose(model(**inputs, **more).logits, together, atol=1e-5)


def test_the_recorded_blocks_do_not_outlive_the_call(served: Served) -> None:
    model = submerge.load(served.merged("default"), passes="one")
    inputs, _ = served.mixed()
    model.route(**inputs)
    assert model.router.replay.recorded is None
    plain = submerge.load(served.merged("default"))
    named = {**inputs, **extra(served, inputs), "task": "task1"}
    assert torch.equal(model(**named).logits, plain(**named).logits), "a task that is named runs as a whole"
    assert model.router.sites, "a third of the layers where nothing is said"
    assert len({site.layer for site in model.router.sites}) == 1


def test_generation_goes_on_from_the_same_choice(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("transformers")
    served = make("llama", tmp_path_factory.mktemp("llama"))
    model = submerge.load(served.merged("default"), passes="one", routing_layers="first:1")
    inputs, _ = served.mixed()
    first = model(**inputs).logits[:, -1].argmax(-1)
    told = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    full = inputs["attention_mask"].all(-1)
    assert full.any()
    assert torch.equal(told[full, inputs["input_ids"].shape[1]], first[full])


def test_passes_are_one_or_two(served: Served) -> None:
    with pytest.raises(RequestError, match="passes"):
        submerge.load(served.merged("default"), passes="three")


def test_a_preset_may_be_changed_when_a_model_is_loaded(served: Served) -> None:
    folder = served.merged("default")
    fast = submerge.load(folder, preset="fast").router.settings
    assert (fast["passes"], fast["score"], fast["select"]) == ("one", "gaussian", "top1")
    paper = submerge.load(folder, preset="paper", max_tasks=2).router.settings
    assert (paper["passes"], paper["select"], paper["max_tasks"]) == ("two", "threshold", 2)
