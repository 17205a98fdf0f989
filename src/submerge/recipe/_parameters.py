"""The `parameters` of a recipe or of one model: a setting for each option of the method."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from submerge.errors import did_you_mean
from submerge.methods import REQUIRED, Method, Option
from submerge.recipe._coefficients import WEIGHT
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._rules import Setting, read_setting

__all__ = ["check_required", "parameter_names", "read_parameters", "single_values", "warn_of_gradients"]

_NO_EFFECT = ("int8_mask",)
"""Parameters of mergekit that change no result: it reads them for any method, in any place."""


def read_parameters(
    raw: Any,
    path: KeyPath,
    method: Method | None,
    methods: Mapping[str, Method],
    report: Report,
    *,
    of_model: bool = False,
) -> dict[str, Setting]:
    """Return the settings of one `parameters` section, as far as they could be read.

    Without a method (its name is unknown) only the form of the settings is checked. `of_model` says
    that the section belongs to one model, where shared options have no place.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        report.add(f"'parameters' is a mapping, not {show(raw)}", path, "write 'name: value' lines")
        return {}
    settings: dict[str, Setting] = {}
    named: dict[str, str] = {}
    for name, written in raw.items():
        here: KeyPath = (*path, name)
        option = _option(method, name, report)
        if name in _NO_EFFECT and (option is None or of_model):
            continue
        if option is None and method is not None:
            _no_option(name, here, method, methods, report)
        elif option is not None and of_model and option.scope == "shared":
            hint = "move it to the recipe's top-level 'parameters'"
            report.add_ignored(f"'{name}' is one value for all models", here, hint)
        elif option is not None and (first := named.setdefault(option.name, name)) != name:
            what = f"'{first}' and '{name}' are two names of one parameter"
            report.add(what, here, "give one of them")
        elif (setting := _setting(name, written, here, option, report)) is not None:
            settings[option.name if option is not None else name] = setting
    return settings


def parameter_names(method: Method | None, methods: Mapping[str, Method]) -> frozenset[str]:
    """Return the names of a method's parameters, or of all methods' where it is not known."""
    known = methods.values() if method is None else [method]
    options = [option for one in known for option in one.options]
    return frozenset(name for option in options for name in option.names)


def _setting(name: str, written: Any, path: KeyPath, option: Option | None, report: Report) -> Setting | None:
    """Return a setting, or None after noting why it is none, or not one for all tensors where it must be."""
    setting = read_setting(written, path, option, report)
    if setting is None or option is None or not option.single or setting.plain:
        return setting
    report.add(
        f"'{name}' is one value for all tensors", path, "give one value, without filters and gradients"
    )
    return None


def _option(method: Method | None, name: str, report: Report) -> Option | None:
    """Return the option of a name; where it is read as mergekit does, one that goes by no other name."""
    option = method.option(name) if method else None
    return None if option is not None and report.lenient and option.name != name else option


def _no_option(
    name: str, path: KeyPath, method: Method, methods: Mapping[str, Method], report: Report
) -> None:
    """Note a parameter that the method does not have."""
    valid = [option.name for option in method.options]
    near = did_you_mean(name, valid, "")
    owners = [other.name for other in methods.values() if other.option(name)]
    if owners:
        hint = f"it belongs to {', '.join(sorted(owners))}"
        hint += f"; {method.name} has {listed(valid)}" if valid else ""
    elif near:
        hint = near
    else:
        hint = f"it has {listed(valid)}" if valid else "it has none"
    report.add_ignored(f"{method.name} has no parameter {show(name)}", path, hint)


def check_required(method: Method, raw: Any, report: Report) -> None:
    """Note the shared options that must be given and that the top-level section does not name."""
    given = raw if isinstance(raw, dict) else {}
    for option in method.options:
        missing = not set(option.names) & set(given)
        if option.scope == "shared" and option.default is REQUIRED and missing:
            path: KeyPath = ("parameters",) if given else ("merge_method",)
            report.add(
                f"{method.name} needs the parameter '{option.name}'",
                path,
                "add it to the recipe's top-level 'parameters'",
            )


def single_values(method: Method, parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the options that are given once for all models and all tensors, as plain values."""
    single = [o.name for o in method.options if o.single and o.scope == "shared"]
    return {name: parameters[name].rules[0].value for name in single if name in parameters}


def warn_of_gradients(
    method: Method, top: Mapping[str, Setting], counts: Collection[int], report: Report
) -> None:
    """Warn of weights at the top level that are a list of as many numbers as there are models.

    It is a gradient over depth for all of them, and reads as a weight for each. Equal numbers are both. Of
    other options, such as a density, a gradient for all models is common.
    """
    option = method.option(WEIGHT)
    if option is None or option.scope == "shared" or WEIGHT not in top:
        return
    values = [rule.value for rule in top[WEIGHT].rules if isinstance(rule.value, tuple)]
    if any(len(value) in counts and len(set(value)) > 1 for value in values):
        what = f"'{WEIGHT}' is a gradient over the layers, the same for every model"
        hint = f"for a value for each model, write {WEIGHT} in the models' own parameters"
        report.warn(f"{what} — {hint}", ("parameters", WEIGHT))
