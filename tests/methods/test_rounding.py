"""Every method is its formula however products are rounded, and whatever form its updates have."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _dense import expected
from _models import ROOM, read, write
from _support import CASES, MATRIX_CASES, Case, State, family
from _updates import FILLING, SHAPES, adapters, assert_close, densely, formula, full, merged, normal, streamed
from store.helpers_adapter import by_hand
from submerge.algebra import LowRank, Update
from submerge.methods import METHODS

pytestmark = pytest.mark.usefixtures("unsteady")

ALL = CASES + MATRIX_CASES


def test_products_are_off_by_one_unit_and_differently_each_time() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randint(-8, 9, size, generator=draw).double() for size in ((30, 20), (20, 40)))
    plain = (a.unsqueeze(2) * b).sum(1)  # exact
    update = LowRank(a, b)
    found = [update.dense() for _ in range(3)]
    for one in found:
        off = (one.view(torch.int64) - plain.view(torch.int64)).abs()
        assert off.max() == 1
        assert 0.5 < off[plain != 0].double().mean() < 0.8
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(update.rmatmul(a.T), update.rmatmul(a.T))
    assert not torch.equal(update.row_gram(), update.row_gram())
    assert (LowRank(0 * a, b).dense() == 0).all()


def test_every_method_is_tried() -> None:
    assert {case.method for case in ALL} == set(METHODS)


FORMS: dict[str, Callable[..., list[Update]]] = {
    "low-rank": adapters,
    "dense": full,
    "streamed": lambda shape: streamed(full(shape)),
    "mixed": lambda shape: [adapters(shape)[0], *densely(adapters(shape)[1:])],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [c for c in MATRIX_CASES if METHODS[c.method].matrix], ids=str)
def test_updates_merge_as_their_formula(case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submerge.algebra._update.BLOCK", 100)
    share = 1e-5 if METHODS[case.method].gate else 1e-7
    for shape in SHAPES + FILLING:
        updates = FORMS[form](shape)
        wanted = formula(case.method, updates, **case.options)
        for _ in range(3):
            assert_close(merged(case.method, updates, **case.options), wanted, share)


@pytest.mark.parametrize("seed", range(4))
def test_variances_that_tie_are_kept_together(seed: int) -> None:
    """Those of the same numbers in any order are equal, and are not when they are computed."""
    (case,) = [case for case in CASES if case.name == "sce-half"]
    values = normal(seed, 3, 9).float()
    models = [{"w": values[[order[t] for order in permutations(range(3))]].flatten()} for t in range(3)]
    base = {"w": torch.zeros(54)}
    found, wanted = case.merge(base, models), expected(case, base, models)
    assert wanted["w"].count_nonzero() % 6 == 0
    same(found, wanted)


# --- whole merges -----------------------------------------------------------------------------------------

TOLERANCE = 2e-5
"""Of float32 weights of up to about 16 (a unit is 1e-6 there), through some sums and products."""


def same(found: State, wanted: State) -> None:
    for name, values in wanted.items():
        torch.testing.assert_close(
            found[name].double(),
            values,
            rtol=0,
            atol=TOLERANCE,
            msg=lambda told, name=name: f"{name}: {told}",
        )


@pytest.mark.parametrize("case", ALL, ids=str)
def test_state_dicts_merge_as_their_formula(case: Case, tiny_chunks: Callable[..., None]) -> None:
    tiny_chunks(50)
    base, models = family(case.models, {"matrix": (24, 17), "norm": (37,)}, size=1.0)
    same(case.merge(base, models), expected(case, base, models))


def recipe(case: Case, base: Path, models: list[Path], **more: Any) -> dict[str, Any]:
    own = {k: v for k, v in case.options.items() if isinstance(v, list)}
    return {
        "merge_method": case.method,
        "models": [
            {"model": str(model), "parameters": {k: v[t] for k, v in own.items()}}
            for t, model in enumerate(models)
        ],
        "parameters": {k: v for k, v in case.options.items() if k not in own},
        **({"base_model": str(base)} if case.base else {}),
        **more,
    }


@pytest.mark.parametrize("case", ALL, ids=str)
def test_checkpoints_merge_as_their_formula(case: Case, tmp_path: Path) -> None:
    base, models = family(case.models, {"h.0.matrix": (24, 17), "h.0.norm": (37,)}, size=1.0)
    folders = [write(tmp_path / str(t), model) for t, model in enumerate(models)]
    out = submerge.merge(
        recipe(case, write(tmp_path / "base", base), folders), tmp_path / "out", settings=ROOM
    ).out
    same(read(out), expected(case, base, models))


MODULES = {"h.0.q": (12, 9), "h.1.q": (9, 12)}


def lora(folder: Path, seed: int, distinct: int) -> tuple[Path, State]:
    """Write an adapter with so many distinct columns of A; return its folder and its updates, in float64."""
    factors: State = {"q.lora_A.weight": torch.ones(()), "q.lora_B.weight": torch.ones(())}  # left out
    updates = {}
    for place, (module, (m, n)) in enumerate(MODULES.items()):
        b, a = (normal(100 * seed + 10 * place + i, *size).float() for i, size in enumerate([(m, 2), (2, n)]))
        a = a[:, torch.arange(n) % distinct]
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        updates[f"{module}.weight"] = b.double() @ a.double()
    return by_hand(folder, factors, lora_alpha=2), updates


@dataclass(frozen=True)
class Adapted:
    """A base, adapters of it, and what the formula of a case gives."""

    case: Case
    base: Path
    adapters: list[Path]
    values: State
    wanted: State

    def merge(self, out: Path, **more: Any) -> Path:
        named = [f"{self.base}+{adapter}" for adapter in self.adapters]
        models = self.adapters if self.case.base else [Path(name) for name in named]
        return submerge.merge(recipe(self.case, self.base, models, **more), out, settings=ROOM).out


def adapted(case: Case, root: Path, distinct: int = 12) -> Adapted:
    """Write a base and the case's adapters."""
    base = {f"{name}.weight": normal(i, *shape).float() for i, (name, shape) in enumerate(MODULES.items())}
    made = [lora(root / f"a{t}", t, distinct) for t in range(case.models)]
    values = {name: tensor.double() for name, tensor in base.items()}
    models = [{name: values[name] + update for name, update in updates.items()} for _, updates in made]
    wanted = expected(case, values, models)
    return Adapted(case, write(root / "base", base), [folder for folder, _ in made], values, wanted)


@pytest.mark.parametrize("collected", [50, 1000])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_adapters_merge_into_a_checkpoint_as_their_formula(
    case: Case,
    collected: int,
    tmp_path: Path,
    tiny_chunks: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_chunks(50)
    monkeypatch.setattr("submerge.algebra._select.COLLECT_ALL", collected)
    made = adapted(case, tmp_path)
    same(read(made.merge(tmp_path / "out")), made.wanted)


SELECTING = [
    case for case in ALL if case.method in ("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "knots_ties")
]


@pytest.mark.parametrize("case", SELECTING, ids=str)
def test_entries_of_products_that_tie_are_kept_together(case: Case, tmp_path: Path) -> None:
    """Columns that are equal come out of a product a little different."""
    made = adapted(case, tmp_path, distinct=3)
    same(read(made.merge(tmp_path / "out")), made.wanted)


INTO_ADAPTERS = [
    c for c in ALL if METHODS[c.method].needs_base and c.method not in ("mass", "slerp", "arcee_fusion")
]


@pytest.mark.parametrize("case", INTO_ADAPTERS, ids=str)
def test_adapters_merge_into_an_adapter_as_their_formula(case: Case, tmp_path: Path) -> None:
    made = adapted(case, tmp_path)
    out = made.merge(tmp_path / "out", output={"as": "adapter", "rank": 9})
    found = load_file(out / "adapter_model.safetensors")
    for module in MODULES:
        b, a = (found[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "BA")
        product = made.values[f"{module}.weight"] + b @ a
        same({module: product}, {module: made.wanted[f"{module}.weight"]})
