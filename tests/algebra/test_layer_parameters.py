"""L12 and its kin: biases, embeddings and norms merge as least squares over what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _least_squares import PLAIN
from _updates import adapters, assert_close, densely, full, matrix, normal, streamed
from submerge.algebra import (
    BlockMoment,
    Dense,
    LayerParameter,
    LowRank,
    LpmOptions,
    Streamed,
    TriangleMoment,
    Update,
    Zero,
    merge_layer,
)

SEEDS = st.integers(0, 10_000)
RIDGE = replace(PLAIN, ridge=1e-3)
M, N, T = 5, 6, 3

WEIGHT, BIAS = LayerParameter(), LayerParameter("linear", "bias")
GAIN, SHIFT = LayerParameter("norm"), LayerParameter("norm", "bias")
TABLE = LayerParameter("embedding")


@dataclass(frozen=True)
class Layers:
    """Inputs [N_t, n] of a layer on each task, and updates of its weight and bias."""

    inputs: list[torch.Tensor]
    weights: Sequence[Update]
    biases: Sequence[Update]


def linear(seed: int, *, low_rank: bool = True) -> Layers:
    inputs = [1 + normal(seed + t, 20 + 5 * t, N) for t in range(T)]
    weights = adapters((M, N), [1, 2, 1], seed) if low_rank else full((M, N), T, seed)
    return Layers(inputs, weights, full((M, 1), T, seed + 9))


def norm(seed: int) -> Layers:
    return Layers(linear(seed).inputs, full((N, 1), T, seed), full((N, 1), T, seed + 9))


def ones_beside(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def with_constant(layers: Layers) -> list[BlockMoment]:
    return [BlockMoment.of(ones_beside(x)) for x in layers.inputs]


def with_constants(layers: Layers) -> list[BlockMoment]:
    """Return the moments of (x_j, 1) of each channel j."""
    pairs = [torch.stack([x, torch.ones_like(x)], -1).flatten(1) for x in layers.inputs]
    return [BlockMoment.of(x, block=2) for x in pairs]


def both(layers: Layers, options: LpmOptions = PLAIN) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the merged weight and bias of a linear map."""
    moments = with_constant(layers)
    weight = merge_layer(WEIGHT, layers.weights, layers.biases, moments, options)
    return matrix(weight), matrix(merge_layer(BIAS, layers.biases, layers.weights, moments, options))


def both_of_norm(layers: Layers, options: LpmOptions = PLAIN) -> tuple[torch.Tensor, torch.Tensor]:
    moments = with_constants(layers)
    gain = merge_layer(GAIN, layers.weights, layers.biases, moments, options)
    return matrix(gain), matrix(merge_layer(SHIFT, layers.biases, layers.weights, moments, options))


@given(SEEDS, st.booleans())
def test_weight_and_bias_are_the_least_squares_solution_over_inputs_with_a_constant(
    seed: int, low_rank: bool
) -> None:
    layers = linear(seed, low_rank=low_rank)
    inputs = [ones_beside(x) for x in layers.inputs]
    outputs = [
        x @ torch.cat([matrix(w), matrix(b)], 1).T
        for x, w, b in zip(inputs, layers.weights, layers.biases, strict=True)
    ]
    wanted = torch.linalg.lstsq(torch.cat(inputs), torch.cat(outputs)).solution.T
    weight, bias = both(layers)
    assert_close(weight, wanted[:, :N], 1e-8)
    assert_close(bias, wanted[:, N:], 1e-8)


@given(SEEDS)
def test_any_form_of_the_updates_gives_the_same(seed: int) -> None:
    layers = linear(seed)
    moments = with_constant(layers)
    low_rank = merge_layer(WEIGHT, layers.weights, layers.biases, moments, RIDGE)
    assert isinstance(low_rank, LowRank)
    for form in (densely, streamed):
        weight, bias = both(replace(layers, weights=form(list(layers.weights))), RIDGE)
        assert_close(weight, matrix(low_rank), 1e-10)
        assert_close(bias, both(layers, RIDGE)[1], 1e-10)


@given(SEEDS)
def test_a_transposed_map_is_the_map(seed: int) -> None:
    layers, moments = linear(seed), with_constant(linear(seed))
    turned = [LowRank(u.right.T, u.left.T) for u in layers.weights if isinstance(u, LowRank)]
    weight, bias = both(layers, RIDGE)
    merged = merge_layer(LayerParameter("transposed"), turned, layers.biases, moments, RIDGE)
    assert isinstance(merged, LowRank)
    assert_close(matrix(merged).T, weight, 1e-12)
    dense = merge_layer(LayerParameter("transposed"), densely(turned), layers.biases, moments, RIDGE)
    assert_close(matrix(dense).T, weight, 1e-10)
    merged = merge_layer(LayerParameter("transposed", "bias"), layers.biases, turned, moments, RIDGE)
    assert_close(matrix(merged), bias, 1e-12)


@pytest.mark.parametrize("form", [BlockMoment, TriangleMoment])
def test_without_a_bias_the_constant_does_not_count(form: type[BlockMoment] | type[TriangleMoment]) -> None:
    layers = linear(0)
    moments = [form.of(ones_beside(x)) for x in layers.inputs]
    plain = [form.of(x) for x in layers.inputs]
    wanted = merge_layer(WEIGHT, layers.weights, None, plain, PLAIN)
    found = merge_layer(WEIGHT, layers.weights, None, moments, PLAIN)
    assert_close(matrix(found), matrix(wanted), 1e-9)
    ones = [form.of(torch.ones(len(x), 1)) for x in layers.inputs]
    alone = merge_layer(BIAS, layers.biases, None, ones, PLAIN)
    found = merge_layer(BIAS, layers.biases, None, moments, PLAIN)
    assert_close(matrix(found), matrix(alone), 1e-9)


def zeros(like: Sequence[Update]) -> list[Update]:
    return [Dense(torch.zeros(u.shape, dtype=torch.float64)) for u in like]


def test_what_no_model_changes_stays_as_it_was() -> None:
    layers = linear(0)
    moments = with_constant(layers)
    wanted = merge_layer(WEIGHT, layers.weights, None, moments, PLAIN)
    same = zeros(layers.biases)
    assert_close(matrix(merge_layer(WEIGHT, layers.weights, same, moments, PLAIN)), matrix(wanted), 1e-12)
    assert not matrix(merge_layer(BIAS, same, layers.weights, moments, PLAIN)).any()


@pytest.mark.parametrize("partner", [None, "zero"])
def test_a_bias_alone_is_weighed_by_tokens(partner: str | None) -> None:
    layers, channels = linear(0), norm(0)
    counts = torch.tensor([len(x) for x in layers.inputs], dtype=torch.float64)
    shares = counts / counts.sum()
    for parameter, own, moments in (
        (BIAS, layers, with_constant(layers)),
        (SHIFT, channels, with_constants(channels)),
    ):
        wanted = sum(c * matrix(b) for c, b in zip(shares, own.biases, strict=True))
        assert isinstance(wanted, torch.Tensor)
        others = None if partner is None else zeros(own.weights)
        assert_close(matrix(merge_layer(parameter, own.biases, others, moments, PLAIN)), wanted, 1e-10)


@given(SEEDS)
def test_gain_and_bias_of_a_norm_are_least_squares_of_each_channel(seed: int) -> None:
    layers = norm(seed)
    gain, bias = both_of_norm(layers)
    for j in range(N):
        x = torch.cat([ones_beside(x[:, j : j + 1]) for x in layers.inputs])
        y = [
            ones_beside(x[:, j : j + 1]) @ torch.stack([matrix(g)[j, 0], matrix(b)[j, 0]])
            for x, g, b in zip(layers.inputs, layers.weights, layers.biases, strict=True)
        ]
        wanted = torch.linalg.lstsq(x, torch.cat(y)[:, None]).solution
        assert_close(torch.stack([gain[j], bias[j]]), wanted, 1e-8)


@given(SEEDS)
def test_a_gain_alone_is_weighed_by_the_squares_of_its_channel(seed: int) -> None:
    layers = norm(seed)
    weights = torch.stack([x.square().sum(0) for x in layers.inputs])
    gains = torch.cat([matrix(u) for u in layers.weights], 1).T
    wanted = (weights * gains).sum(0) / weights.sum(0)
    for moments in ([BlockMoment.of(x, block=1) for x in layers.inputs], with_constants(layers)):
        found = merge_layer(GAIN, layers.weights, None, moments, replace(PLAIN, energy=0.5))
        assert_close(matrix(found)[:, 0], wanted, 1e-10)


def counted(*ids: list[int], rows: int = 4) -> list[BlockMoment]:
    counts = [torch.bincount(torch.tensor(i, dtype=torch.int64), minlength=rows).double() for i in ids]
    return [BlockMoment(c.view(-1, 1, 1), float(c.sum())) for c in counts]


@pytest.mark.parametrize("options", [PLAIN, replace(PLAIN, ridge=1e-12, normalize="per_token")])
def test_rows_of_embeddings_are_weighed_by_counts(options: LpmOptions) -> None:
    moments = counted([0, 0, 0, 1], [0, 1, 1, 1])
    tables = full((4, 2), 2)
    first, second = map(matrix, tables)
    for form in (densely, streamed):
        merged = merge_layer(TABLE, form(list(tables)), None, moments, options)
        assert isinstance(merged, Streamed)
        found = matrix(merged)
        assert_close(found[0], 0.75 * first[0] + 0.25 * second[0], 1e-10)
        assert_close(found[1], 0.25 * first[1] + 0.75 * second[1], 1e-10)
        assert_close(found[2:], (first[2:] + second[2:]) / 2, 1e-12)  # tokens that neither saw
        assert_close(merged.rows(1, 3), found[1:3], 1e-12)


def test_low_rank_updates_of_embeddings_stay_low_rank() -> None:
    moments, updates = counted([0, 0, 3], [0, 1]), adapters((4, 3), [1, 2], 0)
    found = merge_layer(TABLE, updates, None, moments, RIDGE)
    assert isinstance(found, LowRank)
    assert found.left.shape[1] == 3
    assert_close(matrix(found), matrix(merge_layer(TABLE, densely(updates), None, moments, RIDGE)), 1e-12)


def test_a_model_without_an_update_counts_as_zero_or_is_left_out() -> None:
    moments, (table, _) = counted([0, 0, 0], [0, 2]), full((4, 2), 2)
    zero = matrix(merge_layer(TABLE, [table, Zero((4, 2))], None, moments, PLAIN))
    assert_close(zero[0], 0.75 * matrix(table)[0])
    skip = merge_layer(TABLE, [table, Zero((4, 2))], None, moments, replace(PLAIN, missing="skip"))
    assert_close(matrix(skip), matrix(table))


def one_of(kind: str, seed: int) -> tuple[Layers, list[BlockMoment], tuple[LayerParameter, ...]]:
    """Return a layer of a kind, its moments, and its parameters."""
    if kind == "linear":
        return linear(seed), with_constant(linear(seed)), (WEIGHT, BIAS)
    return norm(seed), with_constants(norm(seed)), (GAIN, SHIFT)


KINDS = pytest.mark.parametrize("kind", ["linear", "norm"])


def merged_pair(
    parameters: Sequence[LayerParameter],
    layers: Layers,
    moments: Sequence[BlockMoment],
    options: LpmOptions = RIDGE,
) -> list[torch.Tensor]:
    sides = ((layers.weights, layers.biases), (layers.biases, layers.weights))
    merges = zip(parameters, sides, strict=True)
    return [matrix(merge_layer(p, own, other, moments, options)) for p, (own, other) in merges]


@KINDS
@given(seed=SEEDS)
def test_l4_one_task_or_equal_updates_give_that_update(kind: str, seed: int) -> None:
    layers, moments, parameters = one_of(kind, seed)
    wanted = [matrix(layers.weights[0]), matrix(layers.biases[0])]
    alone = Layers(layers.inputs[:1], layers.weights[:1], layers.biases[:1])
    equal = Layers(layers.inputs, list(layers.weights[:1]) * T, list(layers.biases[:1]) * T)
    for chosen, own in ((alone, moments[:1]), (equal, moments)):
        for found, update in zip(merged_pair(parameters, chosen, own), wanted, strict=True):
            assert_close(found, update, 1e-9)
    table = full((4, 2), 1)
    assert_close(matrix(merge_layer(TABLE, table, None, counted([0, 3]), RIDGE)), matrix(table[0]), 1e-12)


@KINDS
@given(seed=SEEDS)
def test_l5_equal_inputs_or_a_large_ridge_give_the_mean(kind: str, seed: int) -> None:
    layers, moments, parameters = one_of(kind, seed)
    wanted = [torch.stack([matrix(u) for u in us]).mean(0) for us in (layers.weights, layers.biases)]
    even = [moment.scaled(1 / moment.trace) for moment in moments]
    for own, options in ((moments[:1] * T, RIDGE), (even, replace(RIDGE, ridge=1e12))):
        for found, update in zip(merged_pair(parameters, layers, own, options), wanted, strict=True):
            assert_close(found, update, 1e-9)


@KINDS
@given(seed=SEEDS)
def test_l6_what_is_added_to_all_updates_is_added_to_the_merge(kind: str, seed: int) -> None:
    layers, moments, parameters = one_of(kind, seed)
    weight, bias = normal(seed, *layers.weights[0].shape), normal(seed + 1, *layers.biases[0].shape)
    moved = Layers(
        layers.inputs,
        [Dense(matrix(u) + weight) for u in layers.weights],
        [Dense(matrix(u) + bias) for u in layers.biases],
    )
    before, after = (merged_pair(parameters, one, moments) for one in (layers, moved))
    assert_close(after[0], before[0] + weight, 1e-8)
    assert_close(after[1], before[1] + bias, 1e-8)


@KINDS
@given(seed=SEEDS)
def test_l9_the_merge_is_no_worse_than_the_mean(kind: str, seed: int) -> None:
    layers, moments, parameters = one_of(kind, seed)

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> float:
        total = 0.0
        for x, w, b in zip(layers.inputs, layers.weights, layers.biases, strict=True):
            dw, db = weight - matrix(w), bias - matrix(b)
            y = x @ dw.T + db.T if kind == "linear" else x * dw.T + db.T
            total += float(y.square().sum())
        return total

    least = objective(*merged_pair(parameters, layers, moments, PLAIN))
    mean = [torch.stack([matrix(u) for u in us]).mean(0) for us in (layers.weights, layers.biases)]
    assert least <= objective(*mean) * (1 + 1e-12)
    assert least < objective(*merged_pair(parameters, layers, moments, replace(PLAIN, scale=3.0)))


def test_what_no_task_sees_is_refused() -> None:
    with pytest.raises(ValueError, match="no task has inputs"):
        merge_layer(TABLE, full((4, 2), 2), None, counted([], []), PLAIN)
