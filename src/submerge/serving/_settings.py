"""The settings of a folder's gate, as a caller of `load` may change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from submerge.errors import Problem, RequestError, did_you_mean, few
from submerge.methods import METHODS
from submerge.methods.mass import PRESETS
from submerge.serving._folder import Folder

__all__ = ["with_settings"]

MERGED_WITH = ("fixed", "scale", "others")
"""The settings that the bank and the checkpoint were merged with, so that they cannot change."""


def with_settings(folder: Folder, given: Mapping[str, Any], where: str = "load") -> Folder:
    """Return the folder with the caller's settings, checked as a recipe's are.

    Settings that the folder lacks, for it is older, have their defaults. A preset stands for all that it
    says, whatever the recipe's was. `where` they were given is told with what is wrong.
    """
    method = METHODS["mass"]
    defaults = {o.name: o.default for o in method.options if o.single and o.scope == "shared"}
    settings = defaults | dict(folder.settings)
    if given.get("preset") in PRESETS:
        merged_with = {name: settings[name] for name in MERGED_WITH}
        settings |= {**defaults, **PRESETS[given["preset"]], **merged_with}
    problems: list[Problem] = []
    own = [o for o in method.options if o.single and o.scope != "model"]
    changeable = [o.name for o in own if o.name not in MERGED_WITH]
    for name, value in given.items():
        option = method.option(name)
        if option is None or option.name not in changeable:
            hint = did_you_mean(name, changeable, f"there are {few(changeable, 20)}")
            problems.append(Problem(f"there is no setting {name!r} of the gate", where, hint))
            continue
        try:
            settings[option.name] = option.check(value)
        except ValueError as error:
            problems.append(Problem(str(error), where))
    if problems:
        raise RequestError(problems)
    return dataclasses.replace(folder, settings=settings)
