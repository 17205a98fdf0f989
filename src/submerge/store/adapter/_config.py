"""What `adapter_config.json` says of a LoRA adapter: ranks, scales, and whatever changes its meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.adapter._unsupported import refusals, remarks, way_on
from submerge.store.format import read_json

__all__ = ["ADAPTER_CONFIG", "AdapterConfig", "adapter_config", "matches", "read_adapter_config"]

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA configuration that a merge needs, checked; `raw` is all that the file holds."""

    raw: Mapping[str, Any]
    where: str
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
    kind = raw.get("peft_type")
    if kind != "LORA":
        what = f"is a {kind} adapter; only LoRA adapters can be merged" if kind else "names no peft_type"
        raise RequestError(Problem(what, str(path), way_on(str(kind))))
    return adapter_config(raw, str(path))


def adapter_config(raw: Mapping[str, Any], where: str) -> AdapterConfig:
    """Return the fields of a LoRA configuration; raise `RequestError` with all that cannot be honoured."""
    problems = refusals(raw, where)
    read = _Fields(raw, where, problems)
    patterns: dict[str, dict[str, Any]] = {
        "rank_pattern": read.table("rank_pattern", read.rank_value),
        "alpha_pattern": read.table("alpha_pattern", read.number),
    }
    for field, table in patterns.items():
        problems += _bad_patterns(table, field, where)
    config = AdapterConfig(
        raw=raw,
        where=where,
        rank=read.rank_value("r", raw.get("r", 8)),
        alpha=read.number("lora_alpha", raw.get("lora_alpha", 8)),
        rank_pattern=patterns["rank_pattern"],
        alpha_pattern=patterns["alpha_pattern"],
        rslora=read.flag("use_rslora"),
        transposed=read.flag("fan_in_fan_out"),
        bias=read.bias(),
        saved=read.names("modules_to_save"),
        parameters=read.names("target_parameters"),
        tokens=read.tokens(),
        notes=remarks(raw),
    )
    if problems:
        raise RequestError(problems)
    return config


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
        if value not in ("none", "all", "lora_only"):
            self.wrong("bias", value, "none, all or lora_only")
            return "none"
        return str(value)

    def tokens(self) -> dict[str, tuple[int, ...]]:
        value = self.raw.get("trainable_token_indices") or {}
        table = {"": value} if isinstance(value, list) else value
        if not isinstance(table, dict) or not all(
            isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
            for rows in table.values()
        ):
            self.wrong("trainable_token_indices", value, "a list of rows, or one for each module")
            return {}
        problems = [key for key, rows in table.items() if len(set(rows)) != len(rows)]
        if problems:
            self.problems.append(Problem("trainable_token_indices names a row twice", self.where))
        return {key: tuple(rows) for key, rows in table.items()}
