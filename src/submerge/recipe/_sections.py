"""The small sections of a recipe: number formats, rules, output, seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from submerge.arguments import is_count, is_finite_number, is_whole_number
from submerge.recipe._problems import KeyPath, Report, listed, show
from submerge.recipe._schema import DTYPES

__all__ = [
    "OutputForm",
    "Rules",
    "read_count",
    "read_dtype",
    "read_name",
    "read_output",
    "read_rules",
    "read_seed",
]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Rules:
    """What is done where the models' tensors differ; Submerge's own section `rules` of a recipe.

    `missing`: a tensor that a model lacks is refused, or read from the base. `shape`: likewise where
    the shapes differ. `vocabulary`: models whose tokens differ are refused, or merged row by row as
    if they did not.
    """

    missing: Literal["refuse", "base"] = "refuse"
    shape: Literal["refuse", "base"] = "refuse"
    vocabulary: Literal["refuse", "by-position"] = "refuse"


@dataclass(frozen=True)
class OutputForm:
    """What comes out: an ordinary checkpoint, or a LoRA adapter; the section `output` of a recipe.

    `rank` is the most that the adapter may have; None keeps all that the merged updates hold, up to the
    sum of the inputs' ranks. `energy` in (0, 1] asks for the smallest rank that keeps this share of each
    update's squared norm.
    """

    form: Literal["checkpoint", "adapter"] = "checkpoint"
    rank: int | None = None
    energy: float | None = None

    def written(self) -> dict[str, Any] | None:
        """Return the mapping that a recipe has, or None where it would only say the default."""
        if self == OutputForm():
            return None
        limits = {"rank": self.rank, "energy": self.energy}
        return {"as": self.form} | {key: value for key, value in limits.items() if value is not None}


def read_dtype(data: dict[str, Any], key: str, report: Report) -> str | None:
    """Return a number format's full name."""
    raw = data.get(key)
    if raw is None or raw == "":
        return None
    name = DTYPES.get(raw.lower().removeprefix("torch.")) if isinstance(raw, str) else None
    if name is None:
        report.add(f"unknown {key} {show(raw)}", (key,), f"one of {listed(set(DTYPES.values()))}")
    return name


def read_count(data: Mapping[str, Any], path: KeyPath, hint: str, report: Report) -> int | None:
    """Return the positive whole number that a mapping has under the last key of `path`.

    None comes back where there is none, or anything else, which is noted.
    """
    raw = data.get(str(path[-1]))
    if raw is None or is_count(raw):
        return raw
    report.add(f"{path[-1]} is a positive whole number, not {show(raw)}", path, hint)
    return None


def read_name(data: dict[str, Any], report: Report) -> str:
    """Return what the result is called, by which other documents of the file can name it; empty for none."""
    raw = data.get("name")
    if raw is None or isinstance(raw, str):
        return raw or ""
    report.add(f"a name is text, not {show(raw)}", ("name",), "put it in quotes")
    return ""


def read_rules(raw: Any, report: Report, *, by_position: bool = False) -> Rules:
    """Return the `rules` section.

    `by_position` says that tables are merged by position where the section says nothing of vocabularies: so
    does mergekit, which does not compare tokens unless a tokenizer is named.
    """
    default = Rules(vocabulary="by-position") if by_position else Rules()
    if raw is None:
        return default
    if not isinstance(raw, dict):
        report.add(f"'rules' is a mapping, not {show(raw)}", ("rules",), "write 'missing: refuse'")
        return default
    choices = {name: get_args(hint) for name, hint in get_type_hints(Rules).items()}
    chosen: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in choices:
            report.unknown_key(key, tuple(choices), ("rules", key), ours=True)
        elif value not in choices[key]:
            report.add(f"{key} is {show(value)}", ("rules", key), f"one of {listed(choices[key])}")
        else:
            chosen[key] = value
    return replace(default, **chosen)


def read_output(raw: Any, report: Report) -> OutputForm:
    """Return the `output` section; a rank or an energy asks for an adapter."""
    if raw is None:
        return OutputForm()
    if not isinstance(raw, dict):
        report.add(f"'output' is a mapping, not {show(raw)}", ("output",), "write {as: adapter}")
        return OutputForm()
    report.check_keys(raw, ("as", "rank", "energy"), ("output",), ours=True)
    energy = raw.get("energy")
    form = raw.get("as", "checkpoint" if raw.get("rank") is None and energy is None else "adapter")
    if form not in ("checkpoint", "adapter"):
        report.add(f"the output's form is {show(form)}", ("output", "as"), "one of adapter, checkpoint")
        return OutputForm()
    rank = read_count(raw, ("output", "rank"), "write 16, say", report)
    if energy is not None and not (is_finite_number(energy) and 0 < energy <= 1):
        hint = "0.9 keeps nine tenths of each update's squared norm"
        report.add(f"energy is a share in (0, 1], not {show(energy)}", ("output", "energy"), hint)
        energy = None
    for key, value in (("rank", rank), ("energy", energy)):
        if form == "checkpoint" and value is not None:
            report.add(f"'{key}' is given for a checkpoint", ("output", key), "add 'as: adapter'")
    return OutputForm(form, rank, None if energy is None else float(energy))


def read_seed(raw: Any, report: Report) -> int:
    """Return the seed of the methods that draw at random."""
    if raw is None:
        return 0
    if not (is_whole_number(raw) and 0 <= raw <= _MAX_SEED):
        report.add(f"seed is a whole number from 0 to {_MAX_SEED}, not {show(raw)}", ("seed",))
        return 0
    return raw
