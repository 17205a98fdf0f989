"""Arguments of public functions, compared with the types that their signatures say.

A type that is wrong would show far inside, as an error that names no argument. What the function itself says
of its arguments (a range, a word, a file) comes after it.
"""

from __future__ import annotations

import builtins
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, ParamSpec, TypeGuard, TypeVar, Union, get_args, get_origin

from submerge.errors import Problem, RequestError

__all__ = ["check_fields", "checked", "finite_or_none", "is_count", "is_finite_number", "is_whole_number"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Kind(NamedTuple):
    """What one type takes: in words, and the types of its values; True and False are no numbers."""

    words: str
    types: tuple[Any, ...]

    def takes(self, value: Any) -> bool:
        return isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))


_KINDS: Mapping[Any, _Kind] = {
    str: _Kind("text", (str,)),
    Path: _Kind("a path", (os.PathLike,)),
    bool: _Kind("True or False", (bool,)),
    int: _Kind("a whole number", (Integral,)),
    float: _Kind("a number", (Real,)),
    NoneType: _Kind("None", (NoneType,)),
    Callable: _Kind("a function", (Callable,)),
    Mapping: _Kind("a mapping", (Mapping,)),
    **dict.fromkeys((Iterable, Collection, Sequence, list, tuple), _Kind("a sequence", (Iterable,))),
}


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that raises `RequestError` for arguments of other types than its signature says.

    What is given as a number may be one of numpy, as a path any that is like one, and as a sequence anything
    that can be gone through; what is inside of sequences and mappings is not looked at.

    Examples:
        >>> from submerge.arguments import checked
        >>> from submerge.errors import RequestError
        >>> @checked
        ... def half(number: float) -> float:
        ...     return number / 2
        >>> half(3)
        1.5
        >>> try:
        ...     half("3")
        ... except RequestError as error:
        ...     print(error)
        number: takes a number, and not '3' — see help(half)
    """
    named = [Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY]

    @cache
    def kinds() -> dict[str, tuple[_Kind, ...]]:
        parameters = signature(function).parameters
        types = {name: p.annotation for name, p in parameters.items() if p.kind in named and name != "self"}
        return _kinds_by_name(types, function.__globals__)

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = signature(function).bind(*args, **kwargs).arguments
        _check(given, kinds(), function.__qualname__)
        return function(*args, **kwargs)

    return call


def check_fields(values: Any) -> None:
    """Raise `RequestError` for fields of a dataclass that are of other types than it says."""
    kind = type(values)
    types = {name: field.type for name, field in kind.__dataclass_fields__.items()}
    scope = vars(sys.modules[kind.__module__])
    _check(vars(values), _kinds_by_name(types, scope), kind.__qualname__)


def _check(given: Mapping[str, Any], kinds: Mapping[str, tuple[_Kind, ...]], where: str) -> None:
    problems = []
    for name, value in given.items():
        own = kinds.get(name, ())
        if own and not any(kind.takes(value) for kind in own):
            *others, last = dict.fromkeys(kind.words for kind in own)
            words = f"{', '.join(others)} or {last}" if others else last
            problems.append(Problem(f"takes {words}, and not {value!r:.60}", name, f"see help({where})"))
    if problems:
        raise RequestError(problems)


class _Scope(dict[str, Any]):
    """The names of a module; those that it imports for type checkers alone may be anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _kinds_by_name(types: Mapping[str, Any], scope: Mapping[str, Any]) -> dict[str, tuple[_Kind, ...]]:
    """Return what each of some annotations takes, in the scope of their module; nothing: it takes all."""
    names = _Scope(scope)
    found = {}
    for name, annotation in types.items():
        try:
            evaluated = eval(annotation, {}, names) if isinstance(annotation, str) else annotation
        except TypeError:  # of an alias that is text itself
            continue
        found[name] = _kinds(evaluated)
    return found


def _kinds(annotation: Any) -> tuple[_Kind, ...]:
    """Return what values of a type may be; nothing where that cannot be told, and all are taken."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(annotation)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    kind = NoneType if annotation is None else origin or annotation
    if kind in _KINDS:
        return (_KINDS[kind],)
    if kind is Any or not isinstance(kind, type) or kind is Parameter.empty:
        return ()
    return (_Kind(f"a {kind.__name__}", (kind,)),)


def is_whole_number(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number from 1 on."""
    return is_whole_number(value) and value >= 1


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold, and neither NaN nor infinite."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def finite_or_none(value: Any) -> Any:
    """Return plain data for JSON: lists for sequences, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
