"""What a recipe says of one option: a value, a gradient, or rules with filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from submerge.methods import Option
from submerge.recipe._problems import KeyPath, Report, dotted, show

__all__ = ["Rule", "Scalar", "Setting", "checked", "read_setting", "written_settings"]

Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """One value, or a gradient of values over depth, for the tensors whose name holds `filter`.

    `filter` is None where the rule is for every tensor. `where` is the rule's line in the recipe.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None
    where: str

    @property
    def is_gradient(self) -> bool:
        """Whether the value depends on depth."""
        return isinstance(self.value, tuple)

    def written(self) -> Scalar | list[Scalar]:
        """Return the value as a recipe writes it."""
        return list(self.value) if isinstance(self.value, tuple) else self.value


@dataclass(frozen=True)
class Setting:
    """What a recipe says of one parameter in one place: rules, of which the first that matches holds.

    `path` is that place, such as `models[1].parameters.weight`. `behind` is what the next place says, where
    none of the rules holds: behind a slice's parameters stand those of its module, and of the recipe.
    """

    rules: tuple[Rule, ...]
    path: str
    behind: Setting | None = None

    @property
    def plain(self) -> bool:
        """Whether it is one value for all tensors."""
        return len(self.rules) == 1 and self.rules[0].filter is None and not self.rules[0].is_gradient

    def before(self, outer: Setting | None) -> Setting:
        """Return the setting with another place behind it, as far as its own rules leave tensors over."""
        covers = any(rule.filter is None for rule in self.rules)
        return self if covers or outer is None else replace(self, behind=outer)

    @property
    def places(self) -> tuple[Setting, ...]:
        """The setting, and those behind it."""
        return (self, *(self.behind.places if self.behind else ()))

    def written(self) -> Any:
        """Return the setting as a recipe writes it: a value, a gradient, or a list of rules."""
        rules = [rule for place in self.places for rule in place.rules]
        if len(rules) == 1 and rules[0].filter is None:
            return rules[0].written()
        return [
            {"value": rule.written()}
            if rule.filter is None
            else {"filter": rule.filter, "value": rule.written()}
            for rule in rules
        ]


TRUE, FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")
"""What people write for true and false, as pydantic reads it, and so mergekit."""


def checked(option: Option, value: Any) -> Any:
    """Return `option.check(value)`; also numbers too large to compare raise `ValueError`.

    Where true or false is asked for, 1 and 0 mean the same, and so do quoted words such as "yes".
    """
    if option.kind is bool and not isinstance(value, bool):
        word = f"{value:g}" if isinstance(value, (int, float)) and value in (0, 1) else str(value).lower()
        value = word in TRUE if word in (*TRUE, *FALSE) else value
    try:
        return option.check(value)
    except OverflowError:
        raise ValueError(f"{option.name} must be a finite number; found {show(value)}") from None


def read_setting(raw: Any, path: KeyPath, option: Option | None, report: Report) -> Setting | None:
    """Return the setting that was written at `path`, its scalars checked and in the option's type.

    A setting is a scalar; a list of scalars, which is a gradient; a mapping of `value` and `filter`;
    or a list of such mappings. What is wrong is noted in `report`, and None comes back. Without an
    option (its method is unknown) only the form is checked.
    """
    reader = _SettingReader(option, str(path[-1]), report)
    if isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        rules = [reader.rule(item, (*path, i)) for i, item in enumerate(raw)]
    elif isinstance(raw, dict):
        rules = [reader.rule(raw, path)]
    else:
        rules = [reader.plain(raw, path, None)]
    readable = tuple(rule for rule in rules if rule is not None)
    return Setting(readable, dotted(path)) if len(readable) == len(rules) else None


@dataclass(frozen=True)
class _SettingReader:
    """Reads the parts of one setting."""

    option: Option | None
    name: str
    report: Report

    def rule(self, raw: Any, path: KeyPath) -> Rule | None:
        """Return a rule written as a mapping of `value` and `filter`."""
        if not isinstance(raw, dict):
            hint = "write '- value: …' for the tensors that no filter names"
            self.report.add(f"{self.name}: a list of rules holds {show(raw)}", path, hint)
            return None
        unknown = [key for key in raw if key not in ("value", "filter")]
        for key in unknown:
            self.report.unknown_key(key, ("value", "filter"), (*path, key))
        if "value" not in raw:
            if unknown:  # the value is there under another name
                return None
            self.report.add(f"{self.name}: this rule has no 'value'", path, "add 'value: …'")
            return None
        pattern = raw.get("filter")
        if pattern is not None and not isinstance(pattern, str):
            what = f"{self.name}: a filter is part of a tensor's name, not {show(pattern)}"
            self.report.add(what, (*path, "filter"), "put it in quotes")
            return None
        return self.plain(raw["value"], (*path, "value"), None if pattern in ("*", "") else pattern)

    def plain(self, raw: Any, path: KeyPath, pattern: str | None) -> Rule | None:
        """Return a rule whose value is a scalar or a gradient."""
        if isinstance(raw, list):
            if not raw:
                hint = "give a value, or several for a gradient"
                self.report.add_ignored(f"{self.name} is an empty list", path, hint)
                return None
            points = [self.scalar(item, (*path, i)) for i, item in enumerate(raw)]
            readable = tuple(point for point in points if point is not None)
            return Rule(readable, pattern, self.report.where(path)) if len(readable) == len(points) else None
        value = self.scalar(raw, path)
        return None if value is None else Rule(value, pattern, self.report.where(path))

    def scalar(self, raw: Any, path: KeyPath) -> Scalar | None:
        """Return a scalar in the option's type."""
        if raw is None:
            self.report.add(f"{self.name} has no value", path, "give one, or remove the key")
            return None
        if isinstance(raw, (dict, list)):
            what = (
                f"{self.name}: {show(raw)} cannot stand inside a {'rule' if path[-1] == 'value' else 'list'}"
            )
            self.report.add(what, path, "rules do not nest; a gradient is a list of numbers")
            return None
        if self.report.lenient and isinstance(raw, bool) and self.option and self.option.kind is not bool:
            raw = int(raw)  # mergekit takes true for 1
        if self.option is None:
            return raw  # type: ignore[no-any-return]  # plain data: a scalar is all that is left
        try:
            return checked(self.option, raw)  # type: ignore[no-any-return]
        except ValueError as error:
            self.report.add(str(error), path)
            return None


def written_settings(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return settings by their names as a recipe writes them."""
    return {name: setting.written() for name, setting in settings.items()}
