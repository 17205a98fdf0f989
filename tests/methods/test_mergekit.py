"""The methods against mergekit 0.1.5, and the differences that are meant.

Masks are random in both, so mergekit is handed ours; what is then left of a difference is maths.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch

from _dense import expected
from _support import CASES, DETERMINISTIC, SHAPES, Case, State, family, random_mask
from submerge.algebra import stream_key
from submerge.engine import merge_state_dicts
from submerge.methods import METHODS
from submerge.recipe._mergekit import _PARAMETERS

THEIRS = sorted(_PARAMETERS)
SHARED = [case for case in CASES if case.method in THEIRS and case.values.get("variant") != "paper"]
MATRICES = {"w": (24, 17), "long": (6, 200), "norm": (37,)}
TOLERANCE = 2e-6
"""Of the largest weight: a few roundings in float32, in another order."""


@pytest.fixture
def registry(mergekit: ModuleType) -> Mapping[str, Any]:
    """mergekit's methods by name."""
    from mergekit import merge_methods

    return {method.spec.name: method for method in merge_methods.registered_methods()}


def theirs(mergekit: ModuleType, case: Case, base: State, models: list[State], seed: int = 0) -> State:
    """Return mergekit's merge, tensor by tensor, with our random masks."""
    parameters = {
        name: dict(enumerate(value)) if isinstance(value, list) else value
        for name, value in case.values.items()
        if name != "variant"
    }
    merged = {}
    for key in base:
        tensors, ids = [m[key] for m in models], list(range(len(models)))
        if case.base:
            tensors, ids = [base[key], *tensors], ["base", *ids]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "bernoulli", our_masks(case, key, seed))
            merged[key] = mergekit.merge_tensors(
                tensors, case.method, parameters=parameters, ids=ids, base_index=0 if case.base else None
            )
    return merged


def our_masks(case: Case, key: str, seed: int) -> Any:
    """Return a torch.bernoulli that draws our numbers for each model that mergekit masks, in turn."""
    least = 1e-9 if case.method.startswith("della") else 0.0
    masked = (t for t, density in enumerate(case.values.get("density", ())) if least <= density < 1)

    def bernoulli(input: torch.Tensor) -> torch.Tensor:
        return random_mask(case.method, stream_key(seed, key, next(masked)), input).to(input.dtype)

    return bernoulli


def assert_close(ours: State, other: State, tolerance: float = TOLERANCE) -> None:
    assert list(ours) == list(other)
    for key, value in ours.items():
        scale = max(1.0, other[key].abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(value, other[key], rtol=0, atol=tolerance * scale)


def defined(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes that mergekit merges by the same rule as we do."""
    if case.method.startswith("della"):  # its rows lie along axis 1, and need two entries
        return MATRICES
    return {key: shape for key, shape in SHAPES.items() if 0 not in shape}


@pytest.mark.parametrize("size", [0.02, 1.0], ids=["fine-tuned", "unlike"])
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_same_as_mergekit(mergekit: ModuleType, case: Case, size: float) -> None:
    base, models = family(case.models, defined(case), size=size)
    assert_close(case.merge(base, models), theirs(mergekit, case, base, models))


@pytest.mark.parametrize("case", [case for case in SHARED if case in DETERMINISTIC], ids=str)
def test_same_as_mergekit_on_state_dicts(mergekit: ModuleType, case: Case) -> None:
    """One call for all tensors, integer buffers and defaults included."""
    base, models = family(case.models, MATRICES)
    for one in (base, *models):
        one["steps"] = torch.tensor([3, 4])
    required = {k: v for k, v in case.options.items() if k in ("weight", "t")}
    inputs = dict(enumerate(models)) | ({"base": base} if case.base else {})
    if case.base:
        inputs = {"base": base} | inputs
    parameters = {k: dict(enumerate(v)) if isinstance(v, list) else v for k, v in required.items()}
    ours = merge_state_dicts(models, base=base if case.base else None, method=case.method, **required)
    other = mergekit.merge_state_dicts(
        inputs, case.method, parameters=parameters, base="base" if case.base else None
    )
    assert_close(ours, other)


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-7, 1e-3])
def test_slerp_of_short_vectors_is_mergekits(mergekit: ModuleType, size: float) -> None:
    """No longer than 1e-8, a vector counts as orthogonal to any other."""
    base, (model,) = family(1, MATRICES, size=0.0)
    model = {key: value * (size / value.norm()) for key, value in model.items()}
    case = Case("slerp", "slerp", {"t": 0.5}, models=1)
    assert_close(case.merge(base, [model]), theirs(mergekit, case, base, [model]))
    assert_close(case.merge(model, [base]), theirs(mergekit, case, model, [base]))


def test_what_mergekit_has_too_is_known(registry: Mapping[str, Any]) -> None:
    assert sorted(registry.keys() & METHODS.keys()) == THEIRS, "_PARAMETERS of recipe/_mergekit.py"


@pytest.mark.parametrize("name", THEIRS)
def test_options_and_defaults_are_mergekits(registry: Mapping[str, Any], name: str) -> None:
    """All of its parameters, with its defaults; `variant` is ours alone."""
    theirs = {p.name: p for p in registry[name].spec.parameters}
    ours = {o.name: o for o in METHODS[name].options if o.name != "variant"}
    assert set(ours) == set(theirs)
    for key, option in ours.items():
        assert (option.scope == "shared") == (theirs[key].scope.value == "shared"), key
        if repr(option.default) == "required":
            assert theirs[key].required
        elif (name, key) != ("passthrough", "scale"):  # None there: no scaling, as our 1
            assert option.default == theirs[key].default, key


@pytest.mark.parametrize("name", THEIRS)
def test_a_base_is_needed_where_mergekit_needs_it(registry: Mapping[str, Any], name: str) -> None:
    assert METHODS[name].needs_base == (registry[name].spec.contract.base.value == "required")


# Differences that are meant


def updates_of(values: list[float]) -> tuple[State, list[State]]:
    return {"w": torch.zeros(len(values))}, [{"w": torch.tensor(values)}]


def one(method: str, **options: Any) -> Case:
    return Case(method, method, {"weight": [1.0]} | options, models=1)


def test_magnitudes_that_tie_are_all_kept(mergekit: ModuleType) -> None:
    """mergekit keeps exactly k entries, and which of equal ones is up to its sort; we keep them all.

    So an entry's fate depends on its value alone, not on its place.
    """
    base, models = updates_of([1.0, -1.0, 1.0, 0.5])
    case = one("ties", density=[0.5])
    assert case.merge(base, models)["w"].tolist() == [1.0, -1.0, 1.0, 0.0]
    assert theirs(mergekit, case, base, models)["w"].count_nonzero() == 2


def test_outliers_that_tie_are_all_kept(mergekit: ModuleType) -> None:
    """The same at both ends of Breadcrumbs."""
    base, models = updates_of([3.0, 3.0, 2.0, 1.0, 1.0])
    case = one("breadcrumbs", density=[0.6], gamma=[0.2])
    assert case.merge(base, models)["w"].tolist() == [3.0, 3.0, 2.0, 1.0, 1.0]
    assert theirs(mergekit, case, base, models)["w"].count_nonzero() == 3


def test_variances_that_tie_are_all_selected(mergekit: ModuleType) -> None:
    """The same in SCE's selection."""
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.tensor([1.0, 1.0, 1.0, 2.0])}, {"w": torch.tensor([2.0, 2.0, 2.0, 6.0])}]
    case = Case("sce", "sce", {"select_topk": 0.5}, models=2)
    assert case.merge(base, models)["w"].count_nonzero() == 4
    assert theirs(mergekit, case, base, models)["w"].count_nonzero() == 2


def test_della_ranks_along_the_last_axis(mergekit: ModuleType) -> None:
    """mergekit ranks along axis 1, which is the last of matrices only; the paper knows only matrices.

    Along the last axis runs are contiguous in memory, which a streamed method needs.
    """
    case = one("della", density=[0.5], epsilon=[0.49], rescale=False, normalize=False)
    base = {"w": torch.zeros(200, 2, 50)}
    model = {"w": torch.cat([torch.ones(200, 1, 50), torch.full((200, 1, 50), 2.0)], dim=1)}
    theirs_kept = theirs(mergekit, case, base, [model])["w"] != 0
    assert theirs_kept[:, 0].double().mean() < 0.05, "the lower of two in axis 1"
    assert theirs_kept[:, 1].double().mean() > 0.95
    ours = case.merge(base, [model])["w"] != 0
    assert 0.4 < ours[:, 0].double().mean() < 0.6, "equal entries of a row: by their place in it"
    assert 0.4 < ours[:, 1].double().mean() < 0.6


@pytest.mark.parametrize("shape", [(), (1,), (5, 1)])
def test_della_ranks_a_row_of_one(mergekit: ModuleType, shape: tuple[int, ...]) -> None:
    """mergekit divides 0 by 0 and refuses; we keep the only entry as if it were the smallest."""
    case = one("della", density=[0.5], rescale=False)
    base, model = {"w": torch.zeros(shape)}, {"w": torch.ones(shape)}
    assert case.merge(base, [model])["w"].shape == shape
    with pytest.raises((RuntimeError, IndexError)):
        mergekit.merge_tensors(
            [base["w"], model["w"]], "della", parameters={"weight": 1.0, "density": 0.5}, base_index=0
        )


@pytest.mark.parametrize(
    "name",
    [
        "ties",
        "task_arithmetic",
        "sce",
        "model_stock",
        "breadcrumbs_ties",
        "karcher",
        "multislerp",
        "nearswap",
        "ram",
    ],
)
def test_16_bit_weights_are_merged_more_exactly(mergekit: ModuleType, name: str) -> None:
    """mergekit computes in the dtype of its inputs, we in float32, rounding once at the end."""
    (case,) = [case for case in CASES if case.name == name]
    if "density" in case.options:  # ties in magnitude are another matter
        case = Case(name, name, case.options | {"density": 1.0})
    base, models = family(case.models, {"w": (64, 64)}, torch.bfloat16)
    exact = expected(case, base, models)["w"]
    ours = (case.merge(base, models)["w"].double() - exact).abs()
    other = (theirs(mergekit, case, base, models)["w"].double() - exact).abs()
    half_an_ulp = 2.0**-8 * exact.abs() * (1 + 1e-3) + 1e-7
    assert (ours <= half_an_ulp).all(), "the result is the exact one, rounded"
    assert (other > half_an_ulp).double().mean() > 0.005
    assert ours.mean() < other.mean()


def test_multislerp_of_updates_that_are_zero_is_the_base(mergekit: ModuleType) -> None:
    """mergekit merges two models so, and refuses three, of which a tensor may well be the base's."""
    base, _ = family(1, MATRICES)
    for count in (2, 3):
        case = Case("multislerp", "multislerp", {"weight": [0.5] * count}, models=count)
        assert_close(case.merge(base, [base] * count), base, tolerance=0)
    with pytest.raises(ValueError, match="sum of the input tensors is zero"):
        theirs(mergekit, case, base, [base] * count)


@pytest.mark.parametrize("size", [1e-3, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_arcee_fusion_takes_the_elements_that_mergekit_takes_in_float64(
    mergekit: ModuleType, seed: int, size: float
) -> None:
    """All of them: mergekit's divergences have enough digits there."""
    shapes = {"w": (64, 300), "norm": (512,), "conv": (40, 3, 5)}
    base, models = family(1, shapes, torch.float64, seed, size)
    case = Case("arcee_fusion", "arcee_fusion", models=1)
    assert_close(case.merge(base, models), theirs(mergekit, case, base, models), tolerance=1e-15)


def test_arcee_fusion_takes_few_others_in_float32_where_models_are_unlike(mergekit: ModuleType) -> None:
    base, models = family(1, {"w": (200, 1000)}, size=0.3)
    case = Case("arcee_fusion", "arcee_fusion", models=1)
    taken = case.merge(base, models)["w"] != base["w"]
    other = theirs(mergekit, case, base, models)["w"] != base["w"]
    assert 0.02 < taken.double().mean() < 0.2
    assert (taken != other).sum() < 0.002 * taken.sum()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-3), (torch.bfloat16, 0.02)])
def test_arcee_fusion_of_fine_tunes_does_not_follow_rounding(
    mergekit: ModuleType, dtype: torch.dtype, size: float
) -> None:
    """The terms of a divergence cancel but for about size² / 2: what is left in mergekit is their rounding.

    In float64 it takes the elements that we take of the same weights.
    """
    base, models = family(1, {"w": (200, 1000)}, dtype, size=size)
    case = Case("arcee_fusion", "arcee_fusion", models=1)
    wide, *others = [{"w": one["w"].double()} for one in (base, *models)]
    exact = theirs(mergekit, case, wide, others)["w"] != wide["w"]
    ours = case.merge(base, models)["w"] != base["w"]
    other = theirs(mergekit, case, base, models)["w"] != base["w"]
    assert (ours != exact).sum() <= 2
    assert (other != exact).sum() > 0.2 * exact.sum(), "mergekit has mended this: drop the difference"


def test_nuslerp_of_opposites_is_straight(mergekit: ModuleType) -> None:
    """The arc between opposites is not defined: mergekit's result then hangs on how cos θ rounds."""
    values = torch.randn(10, 500, 30, generator=torch.Generator().manual_seed(0))
    options = {"weight": [0.7, 0.3]}
    found = []
    for value in values:
        ours = merge_state_dicts([{"w": value}, {"w": -value}], method="nuslerp", **options)["w"]
        torch.testing.assert_close(ours, 0.4 * value, rtol=0, atol=1e-5)
        other = mergekit.merge_tensors([value, -value], "nuslerp", parameters=options)
        found.append((other.norm() / value.norm()).item())
    assert max(found) - min(found) > 0.01, "mergekit has mended this: drop the difference"


def test_every_method_that_it_has_is_compared(registry: Mapping[str, Any]) -> None:
    assert set(THEIRS) == set(METHODS) & set(registry)
