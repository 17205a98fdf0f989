"""Parameters that have several names: what is one in the output, and what its configuration must say."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from submerge.engine.plan.inputs._inputs import Inputs
from submerge.engine.plan.inputs._named_values import NamedValues
from submerge.engine.plan.inputs._place_copies import CopyPlacer
from submerge.engine.plan.inputs._tied_names import TiedNames, find_tied_names
from submerge.errors import few
from submerge.recipe import Recipe
from submerge.store import Checkpoint, FileTable, Replace, Rows, can_untie, is_t5, tied_embeddings

__all__ = ["Copies", "resolve_copies"]

_ONE_OF_TWO = (
    "in training that kept the base's values, and here both get the update, as in PEFT's merge_and_unload; "
    "train with ensure_weight_tying=True and lm_head in target_modules, or untie the base and train on that"
)


@dataclass(frozen=True)
class Copies:
    """The inputs with a tensor under every name that the output has, and what is one parameter there.

    `copy_of` maps a tensor of the output to the one that it is a copy of. `tied` maps a tensor of the
    output to names for which it stands, too, and which the output does not have. `unties` says that the
    output's configuration must say `tie_word_embeddings: false`.
    """

    inputs: Inputs
    copy_of: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unties: bool = False
    warnings: tuple[str, ...] = ()


def resolve_copies(recipe: Recipe, inputs: Inputs) -> Copies:
    """Return the models with tied names in place: read from the tensor that they are tied to.

    Copies that are stored twice are compared by their values: what a configuration ties and a file keeps
    apart is two parameters. A name that the reference does not store, and that a model keeps apart, becomes a
    tensor of the output, where the reference's class has a place for it.
    """
    base = inputs.reference_model
    if not base.has_values:
        return Copies(inputs)
    with FileTable() as table:
        named, groups = find_tied_names(inputs, table, by_module=recipe.output.form == "adapter")
    decision = _Decision(recipe, inputs, named)
    verdicts = [decision.untying(group) for group in groups]
    unties = any(untied for untied, _ in verdicts)
    names = [decision.names(group, unties) for group in groups]
    placer = CopyPlacer(dict(enumerate(inputs.models)))
    for group, of_output in zip(groups, names, strict=True):
        placer.place(group, of_output)
    return Copies(
        inputs=inputs.of_models(list(placer.models.values())),
        copy_of=_copy_of(groups, names),
        tied=_tied(groups, names),
        unties=unties,
        warnings=(
            *(warning for _, warnings in verdicts for warning in warnings),
            *(w for group in groups for w in _adapter_warnings(group, inputs, recipe.output.form)),
        ),
    )


@dataclass(frozen=True)
class _Decision:
    """Decides which names of a parameter the output has, and whether it must untie them."""

    recipe: Recipe
    inputs: Inputs
    named: NamedValues

    @property
    def _base(self) -> Checkpoint:
        return self.inputs.reference_model

    @property
    def _own_heads(self) -> bool:
        """Whether what the base lacks is a task's own."""
        return self.recipe.method.gate is not None and self.recipe.method.gate.own_heads

    @property
    def _may_grow(self) -> bool:
        """Whether the output may have a name that the base does not store."""
        return bool(self.named.ties(self._base)) and self.named.aliases.complete and not self._own_heads

    def names(self, group: TiedNames, unties: bool) -> list[str]:
        """Return the names of a parameter that the output has.

        Those that the base stores, and those that are another parameter. All of them, where the
        configuration unties them and nothing stands for another; but a T5's embeddings are one module.
        """
        first, others = group.others(self._base)
        stored = group.stored_in(self._base)
        if first is None or not self._may_grow:
            return stored
        is_one_module = is_t5(self._base.config or {}) and group.always.intersection(stored)
        one_module = group.always if is_one_module else frozenset()
        new = {name for name in group.keys if name in others or (unties and name not in one_module)}
        return [name for name in group.names if name in stored or name in new]

    def untying(self, group: TiedNames) -> tuple[bool, list[str]]:
        """Return whether the configuration must untie what it ties for the base, and warnings of that."""
        first, others = group.others(self._base)
        if not others or not self.named.ties(self._base) or self.recipe.output.form == "adapter":
            return False, []
        owners = self._owners(group, first, others)
        what = f"{few(owners)}: unties {few(others)} from {first}, which {_base_label(self._base)} ties"
        new = [name for name in others if name not in self._base.tensors]
        warnings = []
        if new and not self._may_grow:
            if not self._own_heads:
                warnings.append(f"{what}: {few(new)} is dropped, for the output has no place for it")
            if len(new) == len(others):
                return False, warnings
        silent = tied_embeddings(self._base.config) is None and self.named.aliases.ties is None
        if silent and self._base.label in owners:  # then nothing says that the base ties them
            return False, warnings
        if can_untie(self._base.config or {}):
            return True, [*warnings, f"{what}: the output has both, and says tie_word_embeddings: false"]
        kind = (self._base.config or {}).get("model_type")
        hint = f"a config.json of {kind} cannot say so: readers that trust it take one for both"
        return False, [*warnings, f"{what}: the output has both, but {hint}"]

    def _owners(self, group: TiedNames, first: str | None, others: Sequence[str]) -> list[str]:
        """Return the labels of the models in which another name stands for another parameter than `first`."""
        return [
            self.inputs.models[i].label
            for i, values in group.values.items()
            if any(values[name].key != values[first].key for name in others if first)
        ]


def _copy_of(groups: Iterable[TiedNames], names: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return, for each name that stands for what an earlier one stands for, that earlier one."""
    copy_of: dict[str, str] = {}
    for group, of_output in zip(groups, names, strict=True):
        keys, first_of = group.keys, dict[Hashable, str]()
        for name in of_output:
            first = first_of.setdefault(keys.get(name, name), name)
            if first != name:
                copy_of[name] = first
    return copy_of


def _tied(groups: Iterable[TiedNames], names: Iterable[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return, for names of the output, those that stand for the same, and that it does not have."""
    tied: dict[str, tuple[str, ...]] = {}
    for group, of_output in zip(groups, names, strict=True):
        keys = group.keys
        for name in of_output:
            others = [n for n, key in keys.items() if n not in of_output and key == keys.get(name)]
            tied |= {name: tuple(others)} if others else {}
    return tied


def _adapter_warnings(group: TiedNames, inputs: Inputs, form: str) -> list[str]:
    """Return which adapters were trained on one of several names, and are merged into all of them.

    An adapter as output has factors on that one alone, too.
    """
    warnings = []
    for position, values in group.values.items():
        model, adapter = inputs.models[position], inputs.models[position].adapter
        parts = {**(adapter.parts if form == "checkpoint" else {}), **adapter.folded} if adapter else {}
        adapted = [name for name in group.names if name in parts and name in values]
        if adapter is None or len(adapted) != 1 or adapter.config.get("ensure_weight_tying"):
            continue
        part, key = parts[adapted[0]], values[adapted[0]].key
        others = [n for n, value in values.items() if n != adapted[0] and value.key == key]
        trained_in_both = isinstance(part, Rows) and adapted[0] == group.names[0]
        if others and not trained_in_both and not isinstance(part, Replace):
            what = f"adapts {adapted[0]} alone, and {_base_label(model)} ties {few(others)} to it"
            warnings.append(f"{adapter.path}: {what}: {_ONE_OF_TWO}")
    return warnings


def _base_label(model: Checkpoint) -> str:
    """Return the name of the model that has the configuration: the one under an adapter."""
    return (model.under or model).label
