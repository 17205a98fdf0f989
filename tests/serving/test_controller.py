"""A gate of another kind than MASS: what its controller says, on a model that stays one of transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import torch

from _gated import gate_maps
from _models import TEXT, quiet_transformers
from submerge.gating import Gate, GatedModel, Recent, ResidentAssignment, TokenAssignment
from submerge.serving import Call, Controller, Folder
from submerge.serving._routed_model import gated_class

pytest.importorskip("transformers")


class StreamController(Controller):
    """Each token gets the update of its stream, which the caller names; without streams nothing is gated."""

    def __init__(self, gated: GatedModel) -> None:
        self.gated = gated

    @classmethod
    def configured(cls, folder: Folder, settings: Mapping[str, Any]) -> Folder:
        return folder

    @classmethod
    def attach(
        cls, model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
    ) -> StreamController:
        raise NotImplementedError

    def request(self, arguments: MutableMapping[str, Any]) -> torch.Tensor | None:
        streams: torch.Tensor | None = arguments.pop("streams", None)
        return streams

    def begin(self, model: Any, inputs: dict[str, Any], request: torch.Tensor | None) -> Call:
        assignment = ResidentAssignment() if request is None else TokenAssignment(request)
        return Call(inputs, assignment, restore=lambda out: out)

    begin_generate = begin


@pytest.fixture(scope="module")
def model() -> Any:
    t = quiet_transformers()
    torch.manual_seed(0)
    kind = gated_class(t.LlamaForCausalLM, StreamController)
    made = kind(t.LlamaConfig(**{**TEXT, "hidden_size": 32}, pad_token_id=0)).eval()
    gated, _ = gate_maps(made, Gate(Recent(1 << 20)), count=2)
    made.controller = StreamController(gated)
    return made


IDS = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(1))
STREAMS = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]])


@torch.no_grad()
def test_a_call_runs_under_its_assignment(model: Any) -> None:
    found = model(IDS, streams=STREAMS).logits
    with model.controller.gated.gate.over(TokenAssignment(STREAMS)):
        wanted = model(IDS).logits
    assert torch.equal(found, wanted)
    assert model.controller.gated.gate.assignment is None
    plain = model(IDS).logits
    assert (plain - found).abs().max() > 1e-2
    how = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    sequences = model.generate(IDS, streams=STREAMS, **how)
    with model.controller.gated.gate.over(TokenAssignment(STREAMS)):
        assert torch.equal(sequences, type(model).__base__.generate(model, IDS, **how))


@torch.no_grad()
def test_the_model_stays_one_of_transformers(model: Any, tmp_path: Path) -> None:
    t = quiet_transformers()
    twin = copy.deepcopy(model)
    found = model(IDS, streams=STREAMS).logits
    assert torch.equal(twin(IDS, streams=STREAMS).logits, found)
    assert twin.controller.gated.gate is not model.controller.gated.gate
    model.save_pretrained(tmp_path)
    saved = t.LlamaForCausalLM.from_pretrained(tmp_path)
    assert list(saved.state_dict()) == list(model.state_dict())
    assert (saved(IDS).logits - model(IDS).logits).abs().max() < 1e-6, "the resident model is what is saved"
