"""The bench gives what heads say by `prior=`; a served model hears its own heads. Both choose alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.replication.routing.measure import head_evidence
from benchmarks.replication.routing.rows import ROWS

import submerge
from _mass_tasks import make

pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("grouped", [False, True])
def test_heads_that_are_heard_choose_as_the_bench_does(kind: str, grouped: bool, tmp_path: Path) -> None:
    """Trained tasks, whose heads are layers of transformers: of classes, and with text one of a number."""
    served = make(kind, tmp_path)
    row = next(row for row in ROWS if row.name == ("group" if grouped else "default"))
    assert row.head_evidence
    folder = served.merged("default")
    shipped = submerge.load(folder, **row.settings)
    bench = submerge.load(folder, features=True, **row.settings)
    inputs, labels = served.mixed(each=8)
    outputs = []
    for model, head in zip(served.tuned, served.reference.heads, strict=True):
        model.load_state_dict({**served.reference.base, **head}, strict=False)  # the base, and this head
        with torch.no_grad():
            outputs.append(model(**inputs).logits)
    prior = head_evidence(outputs, [one.shape[1] > 1 for one in outputs])
    group = labels if grouped else None
    found, wanted = shipped.route(**inputs, group=group), bench.route(**inputs, prior=prior, group=group)
    assert (found.scores - wanted.scores).abs().max() < 1e-3
    assert found.tasks == wanted.tasks
    deaf = bench.route(**inputs, group=group)
    assert (found.scores - deaf.scores).abs().max() > 0.1, "the heads count"
    assert len(set(found.tasks)) > 1
