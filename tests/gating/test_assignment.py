"""Which rows get which updates: layouts, and explicit weights for each token of a causal LM."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from _gated import PerToken, dense, gate_maps, normal, triplets
from _models import TEXT, quiet_transformers
from submerge.gating import (
    ConstantAssignment,
    Gate,
    GatedFactors,
    Recent,
    ResidentAssignment,
    SampleAssignment,
    Span,
    TokenAssignment,
    UnsplitError,
    gate_module,
)

LABELS = torch.tensor([[0, 1, 1, 2, 0, 0], [0, 0, 2, 2, 2, 0], [0, 0, 0, 0, 1, 0]])
MASK = torch.tensor([[1] * 6, [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
"""Prompts of several lengths, padded on the left."""


def by_token(model: nn.Module, updates: dict[str, Any], labels: torch.Tensor) -> nn.Module:
    """Return a copy whose maps have a weight of their own for each token."""
    explicit = copy.deepcopy(model)
    for name, parts in updates.items():
        path, _, leaf = name.rpartition(".")
        setattr(explicit.get_submodule(path), leaf, PerToken(explicit.get_submodule(name), parts, labels))
    return explicit


@pytest.fixture(scope="module")
def llama() -> Any:
    pytest.importorskip("transformers")
    t = quiet_transformers()
    torch.manual_seed(0)
    return t.LlamaForCausalLM(t.LlamaConfig(**{**TEXT, "hidden_size": 32}, pad_token_id=0)).eval()


@pytest.fixture(scope="module")
def streams(llama: Any) -> tuple[Any, nn.Module, Gate, dict[str, torch.Tensor]]:
    """Return a causal LM gated by token, one with explicit weights, the gate, and a prompt."""
    gate = Gate(Recent(1 << 20))
    model = copy.deepcopy(llama)
    _, updates = gate_maps(model, gate, count=3)
    assert len(updates) == 14, "all maps of both blocks"
    ids = torch.randint(5, 60, LABELS.shape, generator=torch.Generator().manual_seed(1))
    return model, by_token(llama, updates, LABELS), gate, {"input_ids": ids, "attention_mask": MASK}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_decoding_over_a_cache_equals_explicit_weights_for_each_token(
    streams: tuple[Any, nn.Module, Gate, dict[str, torch.Tensor]], options: dict[str, int]
) -> None:
    """Against the same model without a cache, which computes all tokens anew with the weights of each."""
    model, explicit, gate, prompt = streams
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), gate.over(TokenAssignment(LABELS)):
        found = model.generate(**prompt, **how)
    wanted = explicit.generate(**prompt, **how, use_cache=False)  # type: ignore[operator]
    assert torch.equal(found.sequences, wanted.sequences)
    assert len(found.logits) == 6
    for one, other in zip(found.logits, wanted.logits, strict=True):
        assert (one - other).abs().max() < 1e-4
    plain = model.generate(**prompt, **how)
    assert (plain.logits[0] - found.logits[0]).abs().max() > 1e-2, "the updates count"


def test_the_prompt_equals_explicit_weights_for_each_token(
    streams: tuple[Any, nn.Module, Gate, dict[str, torch.Tensor]],
) -> None:
    model, explicit, gate, prompt = streams
    with torch.no_grad(), gate.over(TokenAssignment(LABELS)):
        found = model(**prompt).logits
        twice = model(**{k: v.repeat_interleave(2, dim=0) for k, v in prompt.items()}).logits
    with torch.no_grad():
        wanted = explicit(**prompt).logits
    real = MASK.bool()
    assert (found[real] - wanted[real]).abs().max() < 1e-4
    assert (twice[::2] - found).abs().max() < 1e-5, "of two rows a sample each has the sample's labels"


@pytest.mark.parametrize("length", [3, 200])
@pytest.mark.parametrize("flat", [False, True])
def test_a_linear_map_by_token(length: int, flat: bool) -> None:
    """Few tokens, which go through the factors, and many, which have a dense weight; also as [B · L, n]."""
    gate, module = Gate(Recent(1 << 20)), nn.Linear(16, 24)
    parts = triplets(24, 16, 3)
    explicit = [module.weight.detach(), *(module.weight.detach() + dense(parts, k) for k in range(3))]
    gate_module(gate, module, {"weight": GatedFactors(gate, "w", parts, rule="sum", scale=1.0)}, "map")
    labels = torch.randint(0, 4, (4, length), generator=torch.Generator().manual_seed(0))
    x = normal(9, 4, length, 16)
    with torch.no_grad(), gate.over(TokenAssignment(labels)):
        found = module(x.flatten(0, 1)).view(4, length, 24) if flat else module(x)
        wanted = torch.stack(
            [explicit[k] @ v + module.bias for k, v in zip(labels.flatten(), x.flatten(0, 1), strict=True)]
        )
        assert (found - wanted.view(4, length, 24)).abs().max() < 1e-5
        step = module(x[:, -1:])
    assert (step - (x[:, -1:] @ explicit[0].T + module.bias)).abs().max() < 1e-5, "a decoding step is text"


def test_other_modules_run_where_all_tokens_are_of_one_stream() -> None:
    streams = TokenAssignment(LABELS)
    with pytest.raises(UnsplitError):
        list(streams.split("norm", ((torch.zeros(3, 6, 8),), {})))
    ((group, inputs, within),) = streams.split("norm", ((torch.zeros(3, 1, 8),), {}))
    assert (group.members, group.resident) == ((), True)
    assert inputs[0][0].shape == (3, 1, 8)
    assert within is streams


@pytest.mark.parametrize("positions", [(3, 6), (6, 6), (3, 6, 5), (36,)])
def test_layouts_have_the_places_of_each_stream(positions: tuple[int, ...]) -> None:
    """One or two rows a sample (beams), several heads a position, and positions that are flattened."""
    streams = [(4,), (2, 7)]
    layout = TokenAssignment(LABELS, streams).layout("map", positions)
    count = math.prod(positions)
    rows = 6 if count == 36 else 3
    labels = LABELS.repeat_interleave(rows // 3, dim=0).flatten().repeat_interleave(count // rows // 6)
    assert sum(group.size for group in layout.groups) == count
    for label, (group, place) in enumerate(zip(layout.groups, layout.places, strict=True)):
        assert torch.equal(torch.arange(count)[place], (labels == label).nonzero().flatten())
        assert group.size == (labels == label).sum()
        assert (group.members, group.resident) == (((), True) if not label else (streams[label - 1], False))


def test_rows_that_lie_together_are_a_slice() -> None:
    layout = TokenAssignment(torch.tensor([[0, 1, 1, 0, 2]])).layout("map", (1, 5))
    assert torch.equal(layout.places[0], torch.tensor([0, 3]))  # type: ignore[arg-type]
    assert layout.places[1:] == (slice(1, 3), slice(4, 5))


def test_what_is_no_prompt_is_text() -> None:
    streams = TokenAssignment(LABELS)
    for positions in [(3, 1), (6, 1), (3, 1, 6), (3, 4), (4, 6), (5,), ()]:
        assert streams.layout("map", positions).is_resident, positions
    with pytest.raises(UnsplitError):
        streams.layout("norm", (3, 4, 6))  # heads before positions
    with pytest.raises(ValueError, match="label 2 is of none of 1 streams"):
        TokenAssignment(LABELS, [(0,)])
    assert not TokenAssignment(torch.zeros(3, 6, dtype=torch.long)).acts_on("map")


def test_samples_keep_what_is_left_of_the_batch() -> None:
    batch = SampleAssignment([Span((1,), 0, 3), Span((0, 2), 3, 5)], [Span((1,), 0, 3), Span((2,), 3, 5)])
    second = batch.within(batch.spans[1])
    assert second.spans == (Span((0, 2), 0, 2),)
    assert list(second.leads) == [Span((2,), 0, 2)]
    assert second.window == slice(3, 5)
    assert second.within(Span((0, 2), 1, 2)).window == slice(4, 5)
    assert [(g.members, g.rows) for g in batch.layout("map", (10, 7)).groups] == [
        ((1,), slice(0, 42)),
        ((0, 2), slice(42, 70)),
    ]


def test_the_resident_model_runs_as_it_is() -> None:
    gate, module = Gate(Recent(1 << 20)), nn.Linear(16, 24)
    plain = copy.deepcopy(module)
    update = GatedFactors(gate, "w", triplets(24, 16, 2), rule="sum", scale=1.0)
    gate_module(gate, module, {"weight": update}, "map")
    x = normal(1, 5, 16)
    with torch.no_grad():
        for assignment in (
            ResidentAssignment(),
            ConstantAssignment({"another": torch.ones(2)}),
            SampleAssignment([Span((0,), 0, 5)], resident=frozenset({"map"})),
        ):
            with gate.over(assignment):
                assert torch.equal(module(x), plain(x))
    assert gate.assignment is None
