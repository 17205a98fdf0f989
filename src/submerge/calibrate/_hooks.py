"""The modules whose inputs are measured, among those that adapters change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from submerge.errors import Problem, RequestError, few
from submerge.names import layer_of

__all__ = ["LAST_QUARTER", "choose_hooks"]

LAST_QUARTER = "last_quarter"


def choose_hooks(
    model: nn.Module, adapted: Sequence[str], hooks: str, stored: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return the adapted modules of the last quarter of each stack of layers, or those of a pattern.

    They are in the model's order. A pattern is a regular expression that is searched for in the module's
    name; `last_quarter: PATTERN` is both at once. Where no name has it, those are looked at that the model's
    files have for the modules, if they are `stored`. Raises `RequestError` where there is no such module.
    """
    if not isinstance(hooks, str):
        hint = f"for example {LAST_QUARTER!r} or 'q_proj|v_proj'"
        raise RequestError(Problem(f"{hooks!r} is no regular expression", "hooks", hint))
    among = set(adapted)
    adapted = [name for name, _ in model.named_modules() if name in among]
    chosen, pattern = adapted, hooks
    if hooks.partition(":")[0] == LAST_QUARTER:
        first, pattern = _first_of_last_quarter(model), hooks.partition(":")[2].strip()
        chosen = [n for n in adapted if (place := layer_of(n)) and place[1] >= first[place[0]]]
    expression = _pattern(pattern)
    by_name = [n for n in chosen if expression.search(n)]
    chosen = by_name or [n for n in chosen if expression.search(stored.get(n, n))]
    if not adapted:
        what = "no adapter changes a linear map by factors, of whose inputs there would be a ratio"
        raise RequestError(Problem(what, "hooks", "give adapters of LoRA on linear maps"))
    if not chosen:
        hint = f"the adapters change {few([stored.get(n, n) for n in adapted])}: choose among these"
        raise RequestError(Problem(f"no module with an adapter matches {hooks!r}", "hooks", hint))
    return chosen


def _pattern(hooks: str) -> re.Pattern[str]:
    try:
        return re.compile(hooks)
    except re.error as error:
        what = f"{hooks!r} is no regular expression ({error})"
        raise RequestError(Problem(what, "hooks", f"for example {LAST_QUARTER!r} or 'v_proj'")) from error


def _first_of_last_quarter(model: nn.Module) -> dict[str, int]:
    """Return where the last quarter begins, by stack: layer n − max(1, ⌊n / 4⌋) of n."""
    counts: dict[str, int] = {}
    for name, _ in model.named_modules():
        if place := layer_of(name):
            counts[place[0]] = max(counts.get(place[0], 0), place[1] + 1)
    return {stack: n - max(1, n // 4) for stack, n in counts.items()}
