"""`variant: paper` against PEFT's merge functions, which compute on updates."""

from types import ModuleType

import pytest
import torch

from _support import family, random_mask
from submerge.algebra import stream_key
from submerge.engine import merge_state_dicts

WEIGHTS = [0.5, 1.0, 0.25]


@pytest.fixture
def bank() -> list[torch.Tensor]:
    """Three updates of one tensor."""
    _, models = family(3, {"w": (24, 17)}, size=1.0)
    return [model["w"] for model in models]


def merge(bank: list[torch.Tensor], method: str, **options: object) -> torch.Tensor:
    base = {"w": torch.zeros_like(bank[0])}
    return merge_state_dicts([{"w": u} for u in bank], base=base, method=method, weight=WEIGHTS, **options)[
        "w"
    ]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_paper_is_pefts(peft_merge: ModuleType, bank: list[torch.Tensor], density: float) -> None:
    theirs = peft_merge.ties(bank, torch.tensor(WEIGHTS), density)
    torch.testing.assert_close(merge(bank, "ties", density=density, variant="paper"), theirs)


def test_ties_of_mergekit_is_not_pefts(peft_merge: ModuleType, bank: list[torch.Tensor]) -> None:
    """mergekit elects on weighted updates and divides by weights, PEFT on bare updates and by a count."""
    theirs = peft_merge.ties(bank, torch.tensor(WEIGHTS), 0.5)
    assert not torch.allclose(merge(bank, "ties", density=0.5), theirs, atol=0.1)


def test_task_arithmetic_is_pefts(peft_merge: ModuleType, bank: list[torch.Tensor]) -> None:
    theirs = peft_merge.task_arithmetic(bank, torch.tensor(WEIGHTS))
    torch.testing.assert_close(merge(bank, "task_arithmetic"), theirs)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_dare_paper_is_pefts_given_the_same_masks(
    peft_merge: ModuleType,
    bank: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    density: float,
) -> None:
    """PEFT's DARE-TIES is normalised: it always divides by how many agree."""
    streams = iter(stream_key(0, "w", t) for t in range(3))
    monkeypatch.setattr(torch, "bernoulli", lambda input: random_mask(method, next(streams), input).float())
    theirs = getattr(peft_merge, method)(bank, torch.tensor(WEIGHTS), density)
    ours = merge(bank, method, density=density, variant="paper", normalize=method == "dare_ties")
    torch.testing.assert_close(ours, theirs)
