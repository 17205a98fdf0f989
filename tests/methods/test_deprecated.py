"""Old names that methods of other packages may use: they work, and warn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import submerge
from _models import ROOM, contents, family
from submerge.algebra import Dense, Update
from submerge.methods import METHODS, BankBound, GateSettings, GateSpec, Merged, Method, TensorSpec, Values
from submerge.methods._matrix import mean_plan

ONE: dict[str, Any] = {
    "name": "old",
    "title": "Old",
    "equation": "θ",
    "source": "a test",
    "use": "never",
    "plan": lambda spec, o: mean_plan(spec, {"scale": 1.0, "weight": [1.0] * spec.count}),
}


def _settings(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, Any]:
    return {"tasks": count}


def _bound(spec: TensorSpec, o: Values, rank: int) -> BankBound:
    return BankBound(4 * spec.numel)


def old_method(**more: Any) -> Method:
    with pytest.warns(DeprecationWarning, match=r"Method\(settings=…, kept=…\) is deprecated") as warned:
        method = Method(**ONE, **more)
    assert [Path(one.filename) for one in warned] == [Path(__file__)], "the line that is to be changed"
    return method


def test_settings_and_kept_make_a_gate_as_every_gate_was() -> None:
    method = old_method(settings=_settings, kept=_bound)
    assert method.gate == GateSpec(
        _settings, _bound, every_tensor=True, own_heads=True, partial_models=True, adapter_output=False
    )
    with pytest.warns(DeprecationWarning, match="Method.keeps is deprecated"):
        assert method.keeps
    with pytest.warns(DeprecationWarning, match="Method.settings"):
        assert method.settings is _settings
    with pytest.warns(DeprecationWarning, match="Method.kept"):
        assert method.kept is _bound


def test_without_kept_the_bound_is_nothing() -> None:
    gate = old_method(settings=_settings).gate
    assert gate is not None
    assert gate.bound is not None
    assert gate.bound(TensorSpec("w", (2, 3), 2), {}, 0) == BankBound(0)


def test_methods_without_a_gate() -> None:
    method = Method(**ONE, settings=None, kept=None)
    assert method.gate is None
    for name in ("keeps", "settings", "kept"):
        with pytest.warns(DeprecationWarning, match=f"Method.{name} is deprecated"):
            assert not getattr(method, name)


def test_the_dataclass_knows_new_names_alone() -> None:
    """Or a copy of a method would warn of what nobody wrote."""
    assert not {"settings", "kept", "keeps"} & {field.name for field in fields(Method)}
    copy = replace(METHODS["mass"], name="copy")
    assert copy.gate is METHODS["mass"].gate


def test_merged() -> None:
    update, bank = Dense(torch.ones(2, 2)), {"0.whole": torch.ones(2, 2)}
    with pytest.warns(DeprecationWarning, match=r"Merged\(kept=…\)"):
        merged = Merged(update, kept=bank)  # type: ignore[call-arg]
    assert merged.bank is bank
    with pytest.warns(DeprecationWarning, match=r"Merged\.kept"):
        assert merged.kept is bank


@pytest.mark.parametrize(("old", "new"), [("Keeps", BankBound), ("Settings", GateSettings)])
def test_names_of_the_package(old: str, new: Any) -> None:
    with pytest.warns(DeprecationWarning, match=f"submerge.methods.{old} is deprecated") as warned:
        assert getattr(submerge.methods, old) is new
    assert [Path(one.filename) for one in warned] == [Path(__file__)]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        submerge.methods.Nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:Merged.kept=:DeprecationWarning")
def test_an_old_method_merges_as_before(tmp_path: Path) -> None:
    """The rule of MASS, told in old names, writes the checkpoint and the bank of MASS."""
    mass = METHODS["mass"]

    def matrix(updates: Sequence[Update], spec: TensorSpec, o: Values) -> Merged:
        assert mass.matrix is not None
        merged = mass.matrix(updates, spec, o)
        return Merged(merged.update, merged.figures, kept=merged.bank)  # type: ignore[call-arg]

    assert mass.gate is not None
    method = old_method(
        matrix=matrix, options=mass.options, settings=mass.gate.settings, kept=mass.gate.bound
    )
    made = family(tmp_path)
    new = submerge.merge(made.recipe("mass"), tmp_path / "new", settings=ROOM)
    recipe = submerge.load_recipe(made.recipe("mass") | {"merge_method": "old"}, methods={"old": method})
    old = submerge.merge(recipe, tmp_path / "old", settings=ROOM)
    for file in ("model.safetensors", "bank.safetensors"):
        assert contents(old.out)[file] == contents(new.out)[file]
