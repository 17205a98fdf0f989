"""K parameter sets of one module, selected or with their outputs mixed, against each set by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from _gated import Projector, normal
from submerge.gating import (
    CompetingHeads,
    Gate,
    Heads,
    MixedBranches,
    MixtureAssignment,
    Recent,
    ResidentAssignment,
    SampleAssignment,
    SelectedBranches,
    Span,
    UnsplitError,
    best_head,
    branch_module,
)


def projectors(count: int) -> tuple[list[Projector], list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    modules = [Projector() for _ in range(count)]
    return modules, [{n: p.detach() for n, p in module.named_parameters()} for module in modules]


@pytest.mark.parametrize("rows", [1, 3])
def test_projectors_are_mixed_by_image(rows: int) -> None:
    """Outputs are mixed, and not weights; of several rows an image (crops) each has the image's weights."""
    modules, sets = projectors(2)
    gate, module = Gate(Recent(0)), Projector()
    plain = copy.deepcopy(module)
    branch_module(module, MixedBranches(gate, sets))
    images = normal(1, 4 * rows, 5, 6)
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    with torch.no_grad():
        with gate.over(MixtureAssignment(weights)):
            found = module(images)
        for image in range(4):
            at = slice(image * rows, (image + 1) * rows)
            wanted = sum(w * one(images[at]) for w, one in zip(weights[image], modules, strict=True))
            assert (found[at] - wanted).abs().max() < 1e-6
        mean = copy.deepcopy(plain)
        mean.load_state_dict({n: sum(0.5 * s[n] for s in sets) for n in sets[0]})
        third = slice(2 * rows, 3 * rows)
        assert (found[third] - mean(images[third])).abs().max() > 1e-3, "weights are not mixed"
        assert torch.equal(module(images), plain(images)), "without a mixture it is the resident module"


def test_only_sets_with_a_weight_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sets = projectors(3)
    gate, module = Gate(Recent(0)), Projector()
    branches = MixedBranches(gate, sets)
    branch_module(module, branches)
    runs: list[tuple[int, int]] = []
    run = branches.run

    def count(module: nn.Module, branch: int, args: Any, kwargs: Any) -> Any:
        runs.append((branch, len(args[0])))
        return run(module, branch, args, kwargs)

    monkeypatch.setattr(branches, "run", count)
    weights = torch.tensor([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    with torch.no_grad(), gate.over(MixtureAssignment(weights)):
        module(normal(1, 2, 5, 6))
        assert runs == [(0, 2), (2, 1)]
        with pytest.raises(UnsplitError):
            module(normal(1, 3, 5, 6))


def test_a_mixture_in_16_bits_is_summed_in_32() -> None:
    """Weights that do not sum to 1 once they are rounded leave equal projectors as they are."""
    modules, sets = projectors(1)
    gate, module = Gate(Recent(0)), modules[0].bfloat16()
    plain = copy.deepcopy(module)
    halves = [{n: p.bfloat16() for n, p in sets[0].items()}] * 3
    branch_module(module, MixedBranches(gate, halves))
    images = normal(1, 4, 5, 6).bfloat16()
    weights = torch.tensor([[0.1, 0.2, 0.7]] * 4, dtype=torch.float64)
    with torch.no_grad(), gate.over(MixtureAssignment(weights)):
        found = module(images)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, plain(images))


def test_a_module_that_joins_rows_cannot_be_mixed() -> None:
    class Halving(Projector):
        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return super().forward(patches).unflatten(0, (-1, 2)).mean(1)

    _, sets = projectors(2)
    gate, module = Gate(Recent(0)), Halving()
    branch_module(module, MixedBranches(gate, sets))
    with gate.over(MixtureAssignment(torch.full((4, 2), 0.5))), pytest.raises(UnsplitError):
        module(normal(1, 4, 5, 6))


def test_weights_of_a_mixture_can_be_learned() -> None:
    _, sets = projectors(2)
    gate, module = Gate(Recent(0)), Projector().double()
    branch_module(module, MixedBranches(gate, [{n: p.double() for n, p in s.items()} for s in sets]))
    images = normal(1, 2, 5, 6, dtype=torch.float64)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        with gate.over(MixtureAssignment(weights)):
            return module(images).sin().sum()

    weights = torch.tensor([[0.25, 0.75], [0.6, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (weights,))


@pytest.mark.parametrize("rows", [1, 2])
def test_selected_branches_run_with_their_own_set(rows: int) -> None:
    modules, sets = projectors(3)
    gate, module = Gate(Recent(0)), Projector()
    branch_module(module, SelectedBranches(gate, sets))
    leads = [Span((2,), 0, 2), Span((0,), 2, 3)]
    x = normal(1, 3 * rows, 5, 6)
    with torch.no_grad(), gate.over(SampleAssignment([Span((0, 2), 0, 3)], leads)):
        found = module(x)
        wanted = torch.cat([modules[2](x[: 2 * rows]), modules[0](x[2 * rows :])])
    assert (found - wanted).abs().max() < 1e-6


class Classifier(nn.Module):
    """A head of two maps, which is no single linear map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.out = nn.Linear(6, 6), nn.Linear(6, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.dense(x).tanh())
        return y


WIDTHS = (2, 5, 1)
SPANS = [Span((0, 1), 0, 2), Span((2,), 2, 3)]
LEADS = [Span((1,), 0, 1), Span((0,), 1, 2), Span((2,), 2, 3)]


@pytest.mark.parametrize("kind", [Classifier, lambda width: nn.Linear(6, width)])
@pytest.mark.parametrize("shape", [(3, 6), (3, 4, 6), (6, 6)])
def test_heads_of_several_widths(kind: Any, shape: tuple[int, ...]) -> None:
    """One output a sample, one a token, and two rows a sample."""
    torch.manual_seed(0)
    heads = [kind(width) for width in WIDTHS]
    sets = [{n: p.detach() for n, p in head.named_parameters()} for head in heads]
    x, each = normal(1, *shape), shape[0] // 3
    for form in (Heads, CompetingHeads):
        gate, module = Gate(Recent(0)), copy.deepcopy(heads[1])
        branch_module(module, form(gate, module, sets, alone=True))
        with torch.no_grad(), gate.over(SampleAssignment(SPANS, LEADS)):
            found = module(x)
        with torch.no_grad(), gate.over(ResidentAssignment(every_branch=True)):
            everything = module(x).unflatten(-1, (3, 5))
        with torch.no_grad():
            own = [head(x) for head in heads]
        for t, width in enumerate(WIDTHS):
            assert (everything[..., t, :width] - own[t]).abs().max() < 1e-6
            assert everything[..., t, width:].eq(-torch.inf).all()
        for sample, (tasks, lead) in enumerate(zip([(0, 1), (0, 1), (2,)], [1, 0, 2], strict=True)):
            at = slice(sample * each, (sample + 1) * each)
            if form is Heads:
                assert (found[at][..., : WIDTHS[lead]] - own[lead][at]).abs().max() < 1e-6
                assert found[at][..., WIDTHS[lead] :].eq(-torch.inf).all()
                continue
            rows = found[at].unflatten(-1, (3, 5))
            for t, width in enumerate(WIDTHS):
                if t in tasks:
                    assert (rows[..., t, :width] - own[t][at]).abs().max() < 1e-6
                    assert rows[..., t, width:].eq(-torch.inf).all()
                else:
                    assert rows[..., t, :].eq(-torch.inf).all()


def test_the_best_head_has_the_largest_maximum_or_mean() -> None:
    inf = torch.inf
    logits = torch.tensor([[3.0, -9.0, 2.0, 1.0], [-inf, -inf, 0.0, -inf]])
    assert best_head(logits, 2, "max")[1].tolist() == [0, 1]
    outputs, best = best_head(logits, 2, "avg")
    assert best.tolist() == [1, 1]
    assert outputs.tolist() == [[2.0, 1.0], [0.0, -inf]]
