"""The models that a recipe names, opened: each once, and adapters laid over their bases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._settings import Settings
from submerge.errors import Problem, RequestError
from submerge.recipe import Recipe, same_model
from submerge.store import (
    Adapter,
    Checkpoint,
    lay_over,
    module_names,
    open_model,
    side_by_side,
    split_spec,
)

__all__ = ["open_models"]

NO_BASE = ""
"""The spec of the base that adapters alone have in common: names and shapes without values."""


@dataclass
class _Opener:
    """Opens what specs name, and notes what cannot be."""

    root: Path
    settings: Settings
    download: bool
    heads: bool = False
    untie: bool = False
    other_shapes: bool = False
    opened: dict[str, Checkpoint | Adapter | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def open(self, spec: str, *, adapter: bool = False) -> Checkpoint | Adapter | None:
        """Return what a spec without `+` names, or None after noting why it cannot be opened."""
        key = same_model(spec)
        if key not in self.opened:
            try:
                self.opened[key] = open_model(
                    spec,
                    root=self.root,
                    allow_pickle=self.settings.allow_pickle,
                    download=self.download,
                    adapter=adapter,
                )
            except RequestError as error:
                self.problems += error.problems
                self.opened[key] = None
        return self.opened[key]

    def base(self, spec: str) -> Checkpoint | None:
        """Return the whole model that a spec names."""
        found = self.open(spec)
        if isinstance(found, Adapter):
            hint = "name the model that it was trained on"
            self.problems.append(Problem("an adapter is named where a model is needed", spec, hint))
            return None
        return found

    def model(self, spec: str, base: str | None) -> Checkpoint | None:
        """Return the model that a spec names, an adapter on its own model, else on the recipe's base."""
        model, adapter = split_spec(spec, self.root)
        found = self.open(adapter, adapter=True) if adapter else self.open(model)
        if not isinstance(found, Adapter):
            return found
        under = model if adapter else base or found.base
        if not adapter and base and split_spec(base, self.root)[1]:
            what = "an adapter cannot be laid on a base that has one already"
            hint = "write model+adapter, with the model that it was trained on"
            self.problems.append(Problem(what, spec, hint))
            return None
        if under is None:
            hint = (
                "add 'base_model: …', or write model+adapter; for an adapter again, add output: {as: adapter}"
            )
            kind = "" if found.form == "peft" else f"is a LoRA file of {found.form}; "
            what = f"{kind}the adapter does not say what it was trained on"
            self.problems.append(Problem(what, spec, hint))
            return None
        whole = self.base(under) if adapter or base else self._own_base(found)
        return None if whole is None else self._laid(whole, found, spec)

    def _own_base(self, adapter: Adapter) -> Checkpoint | None:
        """Return the model that an adapter's configuration names; its problems say who named it."""
        assert adapter.base is not None
        spec = adapter.base
        if adapter.base_revision and "@" not in spec and not (self.root / spec).exists():
            spec = f"{spec}@{adapter.base_revision}"
        before = len(self.problems)
        found = self.base(spec)
        if found is None:
            self.problems[before:] = [
                Problem(
                    f"names the base {adapter.base} (base_model_name_or_path): {problem.what}",
                    str(adapter.path / "adapter_config.json"),
                    "add 'base_model: …' to the recipe, or write model+adapter, with the base's place here",
                )
                for problem in self.problems[before:]
            ]
        return found

    def _laid(self, whole: Checkpoint, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the adapter on a model, by the names of its files or else by those of its modules."""
        how: dict[str, Any] = {"heads": self.heads, "untie": self.untie, "other_shapes": self.other_shapes}
        try:
            return lay_over(whole, adapter, spec, **how)
        except RequestError as error:
            first = error
        modules = module_names(whole.config, whole.tensors)
        try:
            if modules:
                return lay_over(whole, adapter, spec, modules, **how)
        except RequestError as error:
            first = error
        self.problems += first.problems
        return None


def open_models(recipe: Recipe, settings: Settings, *, download: bool) -> Inputs:
    """Return the models that a recipe names, each opened once.

    Where an adapter is to come out of adapters alone, no base is opened: the reference is then a model
    without values. Raises `RequestError` with everything that is wrong.
    """
    own_heads = recipe.method.gate is not None and recipe.method.gate.own_heads
    opener = _Opener(
        recipe.root,
        settings,
        download,
        heads=own_heads,
        untie=recipe.output.form == "checkpoint",  # an adapter has no place for what its base lacks
        other_shapes=recipe.rules.shape == "base" and not own_heads,
    )
    specs = list(dict.fromkeys([*([recipe.base] if recipe.base else []), *(e.model for e in recipe.models)]))
    if recipe.output.form == "adapter":
        alone = _adapters_alone(recipe, specs, opener)
        if alone is not None:
            return Inputs.of(recipe, alone)
        if not opener.problems and recipe.base is None:
            where = recipe.models[0].where
            hint = "add 'base_model: …'"
            opener.problems.append(Problem("the base's values are needed to make an adapter", where, hint))
    opened = {spec: opener.model(spec, recipe.base) for spec in specs}
    if opener.problems:
        raise RequestError(list(dict.fromkeys(opener.problems)))
    return Inputs.of(recipe, {spec: model for spec, model in opened.items() if model is not None})


def _adapters_alone(recipe: Recipe, specs: list[str], opener: _Opener) -> dict[str, Checkpoint] | None:
    """Return the adapters over a base without values, or None where that is not all that there is."""
    base = None if recipe.base is None else same_model(recipe.base)
    if base and split_spec(base, opener.root)[1]:
        return None
    adapters: dict[str, Adapter] = {}
    unders = {base} if base else set()
    for spec in specs:
        if same_model(spec) == base:
            continue
        model, adapter = split_spec(spec, opener.root)
        found = opener.open(adapter or model, adapter=adapter is not None)
        if not isinstance(found, Adapter):
            return None
        if adapter:
            unders.add(same_model(model))
        adapters[spec] = found
    if not adapters or len(unders) > 1:
        return None
    forms = {adapter.form for adapter in adapters.values()}
    if base and "kohya" in forms and len(forms) > 1:  # whose names the base alone can match
        return None
    if base and any(a.dense_only(name) for a in adapters.values() for name in a.parts):
        return None
    valueless, *laid = side_by_side(list(adapters.values()))
    models = dict(zip(adapters, laid, strict=True))
    if recipe.base is None:
        return {NO_BASE: valueless, **models}
    place = opener.root / recipe.base  # not opened, and yet no place for an output
    named = replace(valueless, label=recipe.base, path=place if place.exists() else valueless.path)
    return {spec: models.get(spec, named) for spec in specs}
