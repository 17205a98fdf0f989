"""The models that a recipe names, opened: each once, and adapters laid over their bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from submerge.engine.plan._inputs import Inputs
from submerge.engine.plan._settings import Settings
from submerge.errors import Problem, RequestError
from submerge.names import module_names
from submerge.recipe import Coefficients, Recipe, same_model
from submerge.store import Adapter, Checkpoint, lay_over, open_model, side_by_side, split_spec

__all__ = ["open_models"]

NO_BASE = ""
"""The spec of the base that adapters alone have in common: names and shapes without values."""


def open_models(recipe: Recipe, settings: Settings, *, download: bool) -> Inputs:
    """Return the models that a recipe names, each opened once.

    Where an adapter is to come out of adapters alone, no base is opened: the reference is then a model
    without values. Raises `RequestError` with everything that is wrong.
    """
    opener = _Opener(recipe, settings, download)
    specs = list(dict.fromkeys([*([recipe.base] if recipe.base else []), *(e.model for e in recipe.models)]))
    if recipe.output.form == "adapter":
        alone = _adapters_alone(recipe, specs, opener)
        if alone is not None:
            return Inputs.of(recipe, alone)
        if not opener.problems and recipe.base is None:
            what = "the base's values are needed to make an adapter"
            opener.note(what, recipe.models[0].where, "add 'base_model: …'")
    opened = {spec: opener.model(spec) for spec in specs}
    if opener.problems:
        raise RequestError(list(dict.fromkeys(opener.problems)))
    return Inputs.of(recipe, {spec: model for spec, model in opened.items() if model is not None})


@dataclass
class _Opener:
    """Opens what specs name, and notes what cannot be opened."""

    recipe: Recipe
    settings: Settings
    download: bool
    opened: dict[str, Checkpoint | Adapter | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return self.recipe.root

    def note(self, what: str, where: str, hint: str) -> None:
        """Note one problem."""
        self.problems.append(Problem(what, where, hint))

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

    def model(self, spec: str) -> Checkpoint | None:
        """Return the model that a spec names, an adapter on its own model, else on the recipe's base."""
        under, adapter_spec = split_spec(spec, self.root)
        named = self.open(adapter_spec, adapter=True) if adapter_spec else self.open(under)
        if not isinstance(named, Adapter):
            return named
        base = self._full_model(under) if adapter_spec else self._base_of(named, spec)
        return None if base is None else self._on_base(base, named, spec)

    def _full_model(self, spec: str) -> Checkpoint | None:
        """Return the model that a spec names, which must not be an adapter."""
        model = self.open(spec)
        if isinstance(model, Adapter):
            hint = "name the model that it was trained on"
            self.note("an adapter is named where a model is needed", spec, hint)
            return None
        return model

    def _base_of(self, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the model that an adapter alone is laid over: the recipe's base, else the one it names."""
        base = self.recipe.base
        if base and split_spec(base, self.root)[1]:
            hint = "write model+adapter, with the model that it was trained on"
            self.note("an adapter cannot be laid on a base that has one already", spec, hint)
            return None
        if base:
            return self._full_model(base)
        if adapter.base is not None:
            return self._named_base(adapter, adapter.base)
        hint = "add 'base_model: …', or write model+adapter; for an adapter again, add output: {as: adapter}"
        form = "" if adapter.form == "peft" else f"is a LoRA file of {adapter.form}; "
        self.note(f"{form}the adapter does not say what it was trained on", spec, hint)
        return None

    def _named_base(self, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the model that an adapter's configuration names; its problems say who named it."""
        if adapter.base_revision and "@" not in spec and not (self.root / spec).exists():
            spec = f"{spec}@{adapter.base_revision}"
        before = len(self.problems)
        base = self._full_model(spec)
        if base is None:
            self.problems[before:] = [
                Problem(
                    f"names the base {adapter.base} (base_model_name_or_path): {problem.what}",
                    str(adapter.path / "adapter_config.json"),
                    "add 'base_model: …' to the recipe, or write model+adapter, with the base's place here",
                )
                for problem in self.problems[before:]
            ]
        return base

    def _on_base(self, base: Checkpoint, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the adapter on a model, by the names of its files or else by those of its modules."""
        try:
            return self._lay_over(base, adapter, spec, None)
        except RequestError as error:
            refusal = error
        modules = module_names(base.config, base.tensors)
        try:
            if modules:
                return self._lay_over(base, adapter, spec, modules)
        except RequestError as error:
            refusal = error
        self.problems += refusal.problems
        return None

    def _lay_over(
        self, base: Checkpoint, adapter: Adapter, spec: str, modules: Mapping[str, str] | None
    ) -> Checkpoint:
        gate = self.recipe.method.gate
        own_heads = gate is not None and gate.own_heads
        return lay_over(
            base,
            adapter,
            spec,
            modules,
            heads=own_heads,
            untie=self.recipe.output.form == "checkpoint",  # an adapter has no place for what its base lacks
            other_shapes=self.recipe.rules.shape == "base" and not own_heads,
        )


def _adapters_alone(recipe: Recipe, specs: list[str], opener: _Opener) -> dict[str, Checkpoint] | None:
    """Return the adapters over a base without values, or None where that is not all that there is."""
    adapters = _adapters_of_one_base(recipe, specs, opener)
    if not adapters or (recipe.base and _needs_base(recipe, list(adapters.values()))):
        return None
    valueless, *laid = side_by_side(list(adapters.values()))
    models = dict(zip(adapters, laid, strict=True))
    if recipe.base is None:
        return {NO_BASE: valueless, **models}
    place = opener.root / recipe.base  # not opened, and yet no place for an output
    base = replace(valueless, label=recipe.base, path=place if place.exists() else valueless.path)
    return {spec: models.get(spec, base) for spec in specs}


def _adapters_of_one_base(recipe: Recipe, specs: list[str], opener: _Opener) -> dict[str, Adapter]:
    """Return the adapters that specs name, or none where there are other models, or several bases."""
    base = None if recipe.base is None else same_model(recipe.base)
    if base and split_spec(base, opener.root)[1]:
        return {}
    adapters: dict[str, Adapter] = {}
    bases = {base} if base else set()
    for spec in specs:
        if same_model(spec) == base:
            continue
        model, adapter_spec = split_spec(spec, opener.root)
        adapter = opener.open(adapter_spec or model, adapter=adapter_spec is not None)
        if not isinstance(adapter, Adapter):
            return {}
        if adapter_spec:
            bases.add(same_model(model))
        adapters[spec] = adapter
    return adapters if len(bases) < 2 else {}


def _needs_base(recipe: Recipe, adapters: Sequence[Adapter]) -> bool:
    """Return whether the base's tensors must be known.

    That is for names of two forms, for updates of its values, for data that runs through it, and for
    coefficients of modules under its names.
    """
    if recipe.calibrates or (recipe.coefficients and _names_others(recipe.coefficients, adapters)):
        return True
    forms = {adapter.form for adapter in adapters}
    mixed = "kohya" in forms and len(forms) > 1
    return mixed or any(adapter.dense_only(name) for adapter in adapters for name in adapter.parts)


def _names_others(coefficients: Coefficients, adapters: Sequence[Adapter]) -> bool:
    """Return whether coefficients name modules that no adapter changes under this name."""
    changed = {name.rpartition(".")[0] for adapter in adapters for name in adapter.parts}
    return not coefficients.weights.keys() <= changed
