"""What `adapter_config.json` says of an adapter: ranks, scales, and whatever changes its meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.adapter._kinds import KINDS, LORA, AdapterKind
from submerge.store.adapter._unsupported import refusals, remarks, unknown_fields, way_on
from submerge.store.format import read_json

__all__ = ["ADAPTER_CONFIG", "AdapterConfig", "adapter_config", "matches", "read_adapter_config"]

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a configuration that a merge needs, checked; `raw` is all that the file holds."""

    raw: Mapping[str, Any]
    where: str
    kind: AdapterKind
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    transposed: bool
    bias: str
    saved: tuple[str, ...]
    parameters: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    settings: Mapping[str, bool | int | float] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Return the rank that the configuration gives a module, by its path in the model."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module) or "", self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """Return the factor on B A: alpha / r, or alpha / √r with rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module) or "", self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """Return which rows of a module's embedding were trained alone, or None if the file does not say."""
        for key, indices in self.tokens.items():
            if key == "" or module == key or module.endswith(f".{key}"):
                return indices
        return None


def _pattern(patterns: Mapping[str, object], module: str) -> str | None:
    """Return the first pattern, in the file's order, that matches the end of a module's path."""
    return next((key for key in patterns if matches(key, module)), None)


def matches(pattern: str, module: str) -> bool:
    """Return whether a pattern of `rank_pattern` or `alpha_pattern` is of a module, by its path."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def read_adapter_config(path: Path) -> AdapterConfig:
    """Return a folder's `adapter_config.json`; raise `RequestError` with all that cannot be honoured."""
    raw = read_json(path)
    name = raw.get("peft_type")
    if not isinstance(name, str) or name not in KINDS:
        what = f"is a {name} adapter, which is not read" if name else "names no peft_type"
        known = str(name).upper() in KINDS
        hint = f"write its peft_type as PEFT does: {str(name).upper()}" if known else way_on(str(name))
        raise RequestError(Problem(what, str(path), hint))
    return adapter_config(raw, str(path), KINDS[name])


def adapter_config(raw: Mapping[str, Any], where: str, kind: AdapterKind = LORA) -> AdapterConfig:
    """Return the fields of a configuration; raise `RequestError` with all that cannot be honoured."""
    problems = refusals(raw, where, kind)
    read = _Fields(raw, where, problems)
    patterns: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    is_budgeted = "init_r" in kind.fields  # AdaLoRA, whose rank_pattern are the ranks that it kept
    if not is_budgeted:
        patterns["rank_pattern"] = read.table("rank_pattern", read.rank_value)
        patterns["alpha_pattern"] = read.table("alpha_pattern", read.number)
    for name, table in patterns.items():
        problems += _bad_patterns(table, name, where)
    tokens = "token_indices" if "token_indices" in kind.fields else "trainable_token_indices"
    config = AdapterConfig(
        raw=raw,
        where=where,
        kind=kind,
        rank=_rank(read, kind),
        alpha=read.number(kind.alpha, raw.get(kind.alpha, 8)),
        rank_pattern=patterns["rank_pattern"],
        alpha_pattern=patterns["alpha_pattern"],
        rslora=read.flag("use_rslora") and not is_budgeted,
        transposed=read.flag("fan_in_fan_out"),
        bias=read.bias(),
        saved=read.names("modules_to_save"),
        parameters=read.names("target_parameters"),
        tokens=read.tokens(tokens),
        notes=remarks(raw, kind),
        unknown=unknown_fields(raw, kind),
        settings={name: read.setting(name, default) for name, default in kind.settings.items()},
        blocks=read.table("use_bdlora", lambda _, value: value),
    )
    if problems:
        raise RequestError(problems)
    return config


def _rank(read: _Fields, kind: AdapterKind) -> int:
    """Return the rank of modules that no pattern names; 1 for kinds whose tensors alone tell it."""
    if "init_r" in kind.fields:
        return read.rank_value("init_r", read.raw.get("init_r", 12))
    return read.rank_value("r", read.raw.get("r", 8)) if "rank_pattern" in kind.fields else 1


def _bad_patterns(table: Mapping[str, Any], field: str, where: str) -> list[Problem]:
    problems = []
    for key in table:
        try:
            re.compile(rf"(.*\.)?({key})$")
        except re.error as error:
            problems.append(Problem(f"{field}: {key!r} is no regular expression ({error})", where))
    return problems


@dataclass
class _Fields:
    """Typed access to the fields; notes a problem and returns a stand-in where a type is wrong."""

    raw: Mapping[str, Any]
    where: str
    problems: list[Problem]

    def wrong(self, field: str, value: Any, expected: str) -> None:
        self.problems.append(Problem(f"{field} is {value!r} where {expected} is expected", self.where))

    def flag(self, field: str) -> bool:
        value = self.raw.get(field) or False
        if not isinstance(value, bool):
            self.wrong(field, value, "true or false")
        return bool(value)

    def rank_value(self, field: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            self.wrong(field, value, "a whole number ≥ 1")
            return 1
        return value

    def number(self, field: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            self.wrong(field, value, "a number")
            return 1.0
        return float(value)

    def setting(self, field: str, default: bool | float) -> bool | int | float:
        """Return a field of the type of its default, which stands for null, too."""
        value = default if self.raw.get(field) is None else self.raw[field]
        if isinstance(default, float):
            return self.number(field, value)
        if type(value) is not type(default):
            self.wrong(field, value, "true or false" if isinstance(default, bool) else "a whole number")
            return default
        return value

    def table(self, field: str, convert: Callable[[str, Any], Any]) -> dict[str, Any]:
        value = self.raw.get(field) or {}
        if not isinstance(value, dict):
            self.wrong(field, value, "an object")
            return {}
        return {key: convert(f"{field}: {key}", item) for key, item in value.items()}

    def names(self, field: str) -> tuple[str, ...]:
        value = self.raw.get(field) or []
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self.wrong(field, value, "a list of names")
            return ()
        return tuple(sorted(set(value)))

    def bias(self) -> str:
        value = self.raw.get("bias") or "none"
        if value not in ("none", "all") and not (isinstance(value, str) and value.endswith("_only")):
            self.wrong("bias", value, "none, all or lora_only")
            return "none"
        return str(value)

    def tokens(self, field: str) -> dict[str, tuple[int, ...]]:
        value = self.raw.get(field) or {}
        table = {"": value} if isinstance(value, list) else value
        if not isinstance(table, dict) or not all(
            isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
            for rows in table.values()
        ):
            self.wrong(field, value, "a list of rows, or one for each module")
            return {}
        problems = [key for key, rows in table.items() if len(set(rows)) != len(rows)]
        if problems:
            self.problems.append(Problem(f"{field} names a row twice", self.where))
        return {key: tuple(rows) for key, rows in table.items()}
