"""What the specs of a recipe name, opened once, with what cannot be opened noted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submerge.engine.plan.inputs._settings import Settings
from submerge.errors import Problem, RequestError, WorkError, did_you_mean, nearest
from submerge.names import module_names
from submerge.recipe import Recipe, document_hint, same_model
from submerge.store import (
    Adapter,
    Checkpoint,
    is_of_pipeline,
    lay_over,
    open_config,
    open_model,
    open_tokenizer,
    split_spec,
)

__all__ = ["Opener"]


@dataclass
class Opener:
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
        """Return what a spec without `+` names, or None after noting why it cannot be opened.

        With `adapter` a whole model is noted, too, where the same spec was opened as one before.
        """
        key = same_model(spec)
        if key not in self.opened:
            try:
                self.opened[key] = self._open(spec, adapter=adapter)
            except RequestError as error:
                self.problems += self._of_documents(error, spec)
                self.opened[key] = None
            except WorkError as error:  # as of what reads as a repository, without a network
                hint = self._documents_like(spec)
                raise WorkError(f"{error}; {hint}") if hint else error from None
        opened = self.opened[key]
        if adapter and isinstance(opened, Checkpoint) and spec not in self.recipe.parts:
            hint = "name the folder in which PEFT saved the adapter"
            self.note("is a whole model, and an adapter is needed", spec, hint)
            return None
        return opened

    def _open(self, spec: str, *, adapter: bool) -> Checkpoint | Adapter:
        """Return what a spec without `+` names: the result of another document of the recipe, or a model."""
        part = self.recipe.parts.get(spec)
        if isinstance(part, Checkpoint):
            return part
        model = open_model(
            spec if part is None else str(part),
            root=self.root,
            allow_pickle=self.settings.allow_pickle,
            download=self.download,
            adapter=adapter,
        )
        return model if part is None else replace(model, label=spec)

    def _of_documents(self, error: RequestError, spec: str) -> list[Problem]:
        """Return why a spec could not be opened, with the documents of the file that it may mean."""
        hint = self._documents_like(spec)
        if not hint:
            return list(error.problems)
        return [replace(p, hint="; ".join(filter(None, (hint, p.hint)))) for p in error.problems]

    def _documents_like(self, spec: str) -> str:
        """Return which documents a spec may mean; none where it names a path, or a repository unlike all."""
        others = self.recipe.documents
        if not others or os.path.exists(self.root / spec) or ("/" in spec and nearest(spec, others) is None):
            return ""
        return document_hint(spec, others)

    def model(self, spec: str) -> Checkpoint | None:
        """Return the model that a spec names, an adapter on its own model, else on the recipe's base."""
        under, adapter_spec = split_spec(spec, self.root)
        named = self.open(adapter_spec, adapter=True) if adapter_spec else self.open(under)
        if not isinstance(named, Adapter):
            return named
        base = self.full_model(under) if adapter_spec else self._base_of(named, spec)
        return None if base is None else self.on_base(base, named, spec)

    def full_model(self, spec: str) -> Checkpoint | None:
        """Return the model that a spec names, which must not be an adapter."""
        model = self.open(spec)
        if isinstance(model, Adapter):
            hint = "name the model that it was trained on"
            self.note("an adapter is named where a model is needed", spec, hint)
            return None
        return model

    def tokenizer(self) -> Checkpoint | None:
        """Return the model outside of the recipe's that gives the tokenizer, or None after noting why not."""
        settings = self.recipe.tokenizer
        source = settings.source or ""
        if settings.new_tokens and settings.new_tokens.method == "omp":
            return self._donor(source)
        part = self.recipe.parts.get(source)
        if isinstance(part, Checkpoint):
            return part
        try:
            model = open_tokenizer(source if part is None else str(part), root=self.root)
            return replace(model, label=source)
        except RequestError as error:
            for problem in self._of_documents(error, source):
                what = f"the tokenizer's source, {problem.where}: {problem.what}"
                hint = did_you_mean(source, ("union", "base"), problem.hint)
                self.note(what, settings.where, hint)
        return None

    def _donor(self, source: str) -> Checkpoint | None:
        """Return the model whose rows tell what its tokens mean; note which methods do without such rows."""
        before = len(self.problems)
        model = self.full_model(source)
        place = self.root / source
        if model is None and place.is_dir() and open_tokenizer(source, root=self.root).tokenizer.complete:
            hint = "or choose the method subword or mean, for which its tokenizer is enough"
            problems = self.problems[before:]
            self.problems[before:] = [replace(p, hint=f"{p.hint}; {hint}") for p in problems]
        return model

    def _base_of(self, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the model that an adapter alone is laid over: the recipe's base, else the one it names."""
        base = self.recipe.base
        if base and split_spec(base, self.root)[1]:
            hint = "write model+adapter, with the model that it was trained on"
            self.note("an adapter cannot be laid on a base that has one already", spec, hint)
            return None
        if base:
            return self.full_model(base)
        if adapter.base is not None:
            return self.named_base(adapter, adapter.base)
        hint = "add 'base_model: …', or write model+adapter; for an adapter again, add output: {as: adapter}"
        form = f"is a LoRA file of {adapter.form}; " if is_of_pipeline(adapter.form) else ""
        self.note(f"{form}the adapter does not say what it was trained on", spec, hint)
        return None

    def told_config(self, adapters: Mapping[str, Adapter]) -> Mapping[str, Any] | None:
        """Return the configuration of the base of adapters, by their specs, without opening the base.

        That is the base that the recipe names, or the one that all adapters' files name, if it is on this
        disk: the network is not asked for what no recipe names. None where there is none. Raises
        `RequestError` where it cannot be read.
        """
        named = [self.recipe.base or self._trained_on(*each) for each in adapters.items()]
        bases = {same_model(spec): spec for spec in named if spec}
        return self._config(*bases.values()) if len(bases) == 1 else None

    def _config(self, spec: str) -> Mapping[str, Any] | None:
        part = self.recipe.parts.get(spec, spec)
        if isinstance(part, Checkpoint):
            return part.config
        try:
            return open_config(str(part), root=self.root)
        except RequestError as error:
            hint = "it tells how matrices are fused: mend that, or say fused: whole to take each as one"
            unread = Problem("its config.json cannot be read", spec, hint)
            raise RequestError([*error.problems, unread]) from None

    def _trained_on(self, spec: str, adapter: Adapter) -> str | None:
        """Return the model that an adapter stands behind in a spec, else the folder that its files name."""
        model, own = split_spec(spec, self.root)
        if own:
            return model
        return adapter.base if adapter.base and (self.root / adapter.base).exists() else None

    def named_base(self, adapter: Adapter, spec: str) -> Checkpoint | None:
        """Return the model that an adapter's configuration names; its problems say who named it."""
        if adapter.base_revision and "@" not in spec and not (self.root / spec).exists():
            spec = f"{spec}@{adapter.base_revision}"
        before = len(self.problems)
        if isinstance(self.open(spec), Adapter):
            what = f"was trained on a model with the adapter {adapter.base} (base_model_name_or_path)"
            hint = (
                f"merge {adapter.base} into its own model first (merge_method: passthrough), and name the "
                "result as base_model"
            )
            self.note(what, str(adapter.path / "adapter_config.json"), hint)
            return None
        base = self.full_model(spec)
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

    def on_base(self, base: Checkpoint, adapter: Adapter, spec: str) -> Checkpoint | None:
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
        gate, checkpoint = self.recipe.method.gate, self.recipe.output.form == "checkpoint"
        own_heads = gate is not None and gate.own_heads
        return lay_over(
            base,
            adapter,
            spec,
            modules,
            heads=own_heads,
            untie=checkpoint,  # an adapter has no place for what its base lacks
            other_shapes=self.recipe.rules.shape == "base" and not own_heads and not self._is_reference(spec),
            other_rows=checkpoint and self.recipe.gathers_rows,
        )

    def _is_reference(self, spec: str) -> bool:
        """Return whether a spec is the base, or the first model without one: the output has its shapes."""
        first = self.recipe.base or self.recipe.models[0].model
        return same_model(spec) == same_model(first)
