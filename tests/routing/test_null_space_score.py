"""The null-space ratio as a router's score: what `null_space_ratio` measures, for each input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _adapters import FIRST, SECOND, Tuned, make_tuned
from calibrate.helpers_null_space import base_model, batch, normal, projected
from submerge.algebra import Triplets
from submerge.gating import Gate, GatedFactors, Recent
from submerge.methods.mass import Pooling, Score
from submerge.routing import SiteScore, TokenPooling, site_score

N = 20


def scorer(*ranks: int, width: int = N) -> tuple[SiteScore, dict[int, torch.Tensor]]:
    """Return the score of tasks of some ranks (0: does not change the map), and what they read by."""
    parts = {}
    for t, rank in enumerate(ranks):
        if rank:
            u, s, v = torch.linalg.svd(normal(t, 12, rank) @ normal(t + 50, rank, width), full_matrices=False)
            parts[t] = Triplets(u[:, :rank].float(), s[:rank].float(), v[:rank].float())
    weight = GatedFactors(Gate(Recent(1 << 20)), "w", parts, rule="tsv_m", scale=1.0)
    rows = {t: weight.down[at] for t, at in weight.places.items()}
    return site_score(weight, len(ranks), Score.NULL_SPACE, "l2"), rows


def test_it_is_the_mean_over_tokens_of_the_explicit_projection_less_the_level() -> None:
    """Padding does not count, nor does the length of a token; ranks have levels of their own."""
    score, rows = scorer(3, 5)
    x, mask = normal(9, 2, 6, N).float(), torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
    found = score(TokenPooling(Pooling.TOKENS, 2, mask)(x))
    for t, basis in rows.items():
        level = (1 - len(basis) / N) ** 0.5
        for row in range(2):
            plain = projected(basis, x[row][mask[row].bool()]).mean() - level
            assert float(found[row, t] - plain) == pytest.approx(0, abs=1e-6)
    lengths = torch.rand(2, 6, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.allclose(score(TokenPooling(Pooling.TOKENS, 2, mask)(x * lengths)), found, atol=1e-6)


def test_chance_is_zero_whatever_the_rank() -> None:
    """Noise, a task that does not change the map, and inputs that are all gaps."""
    score, rows = scorer(2, 100, 0, width=200)
    found = score(normal(3, 8, 300, 200).float())
    assert found.abs().max() < 2e-3
    assert score(torch.zeros(2, 3, 200)).eq(0).all()
    inside = normal(4, 5, 2) @ rows[0].double()
    assert torch.allclose(
        score(inside.float())[:, 0], torch.tensor(-((1 - 2 / 200) ** 0.5)).double(), atol=1e-3
    )


def test_of_equal_ranks_pooled_inputs_are_ranked_as_by_the_residual() -> None:
    """z-scores of ‖z‖ ω are those of ω, so that there the score is MASS's own."""
    score, _ = scorer(4, 4, 4)
    weight_score, _ = scorer(4, 4, 4)
    z = normal(9, 6, N).float()
    residual = (weight_score(z) + (1 - 4 / N) ** 0.5) * z.double().norm(dim=1, keepdim=True)

    def standardised(r: torch.Tensor) -> torch.Tensor:
        return (r.mean(1, keepdim=True) - r) / r.std(1, keepdim=True)

    assert torch.allclose(standardised(score(z)), standardised(residual), atol=1e-5)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Two adapters of unequal ranks, of which one lacks a map."""
    pytest.importorskip("peft")
    made = make_tuned(tmp_path_factory.mktemp("routed"), "llama", FIRST, SECOND)
    base_model(made, torch.float32).save_pretrained(made.base)  # with all of its configuration
    return made


@pytest.fixture(scope="module")
def served(tuned: Tuned) -> Path:
    out = tuned.base.parent / "served"
    tuned.merge(out, "mass", parameters={"score": "null_space"})
    return out


def measured(tuned: Tuned, inputs: dict[str, torch.Tensor]) -> Any:
    """Return the ratios of each input by itself, at all maps with adapters."""
    rows = len(inputs["input_ids"])
    data = {str(row): [{name: x[row : row + 1] for name, x in inputs.items()}] for row in range(rows)}
    model = base_model(tuned, torch.float32)
    return submerge.null_space_ratio(model, list(tuned.adapters), data, hooks=".")


def test_at_each_map_it_is_what_null_space_ratio_measures(tuned: Tuned, served: Path) -> None:
    inputs = batch(0, size=4)
    model = submerge.load(served)
    evidence = model.router.first_pass.evidence(model, inputs, 4)
    found = measured(tuned, inputs)
    scores = {
        name: score
        for site, group in zip(model.router.sites, evidence.sites, strict=True)
        for name, score in zip(site.maps, group, strict=True)
    }
    assert set(found.modules) <= set(scores)
    for name, ratios, level in zip(found.modules, found.values, found.isotropic, strict=True):
        plain = (ratios - level).nan_to_num()  # a task without the map is at its level
        assert torch.allclose(scores[name].double(), plain, atol=1e-5), name


def test_the_router_takes_the_adapter_of_the_smallest_mean_ratio(tuned: Tuned, served: Path) -> None:
    """Every map counts by itself, on one scale; so do tokens: text has the pooling of images here."""
    inputs = batch(0, size=4)
    model = submerge.load(served)
    assert model.router.settings["score"] == "null_space"
    assert model.router.settings["pooling"] == "tokens"
    routing = model.route(**inputs)
    found = measured(tuned, inputs)
    apart = (found.values - found.isotropic.unsqueeze(1)).nan_to_num()
    assert routing.lead.tolist() == apart.sum(0).argmin(1).tolist()
    count = sum(len(site.maps) for site in model.router.sites)  # those of no adapter say nothing
    deviation = (apart.var(-1, keepdim=True).sum(0) / count).sqrt()
    mean = apart.sum(0) / count
    assert (routing.scores - (mean.mean(1, keepdim=True) - mean) / deviation).abs().max() < 1e-3


def test_what_was_cut_has_the_ratio_of_what_is_left(tuned: Tuned, tmp_path: Path) -> None:
    """No smaller than that of the whole adapter."""
    tuned.merge(tmp_path / "cut", "mass", parameters={"score": "null_space", "rank": 1})
    model = submerge.load(tmp_path / "cut")
    inputs = batch(0, size=2)
    evidence = model.router.first_pass.evidence(model, inputs, 2)
    found = measured(tuned, inputs)
    name = "model.layers.1.self_attn.q_proj"
    (cut,) = (
        score
        for site, group in zip(model.router.sites, evidence.sites, strict=True)
        for map_name, score in zip(site.maps, group, strict=True)
        if map_name == name
    )
    ratio = cut + (1 - 1 / model.get_submodule(name).in_features) ** 0.5
    assert (ratio >= found.values[found.modules.index(name)] - 1e-6).all()


def test_an_unknown_score_is_refused_with_those_that_there_are(tuned: Tuned, tmp_path: Path) -> None:
    with pytest.raises(submerge.RequestError, match="null_space"):
        tuned.merge(tmp_path / "out", "mass", parameters={"score": "nullspace"})
