"""A folder whose gate mixes projectors: what its bank's tensors are called, and the gate's settings.

Each group of tasks has a projector of its own, and prototypes of what that is given. `bank.safetensors` has

    modules.K.NAME     a parameter of the projector of group K; NAME is the checkpoint's
    prototypes.K       [m, d] float32: its prototypes
    questions.K        [m, h] float32: those of its texts, where these count, too
    discriminants.K    [m, d + 1] float32: of each prototype the row (w, b) of a linear discriminant of all
                       tasks, where tasks are told apart by that
    question_discriminants.K    [m, h + 1]: the same of texts

Groups are numbered in the order of their first task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from submerge.arguments import is_count, is_finite_number
from submerge.errors import Problem, RequestError, few

__all__ = [
    "PROJECTOR_GATE",
    "PROJECTOR_GROUP_KINDS",
    "PROJECTOR_KEYS",
    "PROJECTOR_POOLINGS",
    "PROJECTOR_SCORES",
    "ProjectorKey",
    "ProjectorSettings",
    "discriminant_key",
    "module_key",
    "projector_groups",
    "prototype_key",
    "question_discriminant_key",
    "question_key",
    "read_projector_key",
]

PROJECTOR_GATE = "projectors"
"""What `submerge.json` calls the gate that mixes projectors' outputs by similarity to prototypes."""
PROJECTOR_POOLINGS = ("mean", "position")
"""What an input is compared by: the mean of its positions, or all of them side by side."""
PROJECTOR_KEYS = ("image", "text", "both")
"""What is compared with prototypes: what the projector is given, the text's embeddings, or either."""
PROJECTOR_SCORES = ("prototypes", "discriminant")
"""How it is compared: by the cosine with the nearest prototype, or by a linear discriminant of the tasks."""
TEMPERATURES = {"prototypes": 0.03, "discriminant": 1.0}
"""τ by the score. A discriminant's probabilities are those of the tasks as they are."""
MODULE, PROTOTYPES, QUESTIONS = "modules", "prototypes", "questions"
DISCRIMINANTS, QUESTION_DISCRIMINANTS = "discriminants", "question_discriminants"
PROJECTOR_GROUP_KINDS = (PROTOTYPES, QUESTIONS, DISCRIMINANTS, QUESTION_DISCRIMINANTS)
"""Kinds of tensors that tell the groups apart, one a group."""


def module_key(group: int, name: str) -> str:
    """Return what the bank calls a parameter of a group's projector, by its name in the checkpoint."""
    return f"{MODULE}.{group}.{name}"


def prototype_key(group: int) -> str:
    """Return what the bank calls a group's prototypes."""
    return f"{PROTOTYPES}.{group}"


def question_key(group: int) -> str:
    """Return what the bank calls the prototypes of a group's texts."""
    return f"{QUESTIONS}.{group}"


def discriminant_key(group: int) -> str:
    """Return what the bank calls a group's rows of the discriminant of images."""
    return f"{DISCRIMINANTS}.{group}"


def question_discriminant_key(group: int) -> str:
    """Return what the bank calls a group's rows of the discriminant of texts."""
    return f"{QUESTION_DISCRIMINANTS}.{group}"


@dataclass(frozen=True)
class ProjectorKey:
    """What a tensor of the bank is: its `kind`, its group, and a parameter's name in the checkpoint."""

    kind: str
    group: int
    name: str = ""

    @property
    def is_module(self) -> bool:
        """Whether it is a parameter of a projector."""
        return self.kind == MODULE


def read_projector_key(key: str, count: int) -> ProjectorKey:
    """Return what a tensor of the bank of `count` groups is; raise `RequestError` for any other name."""
    kind, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    known = bool(name) if kind == MODULE else kind in PROJECTOR_GROUP_KINDS and not name
    if not known or not number.isdecimal() or int(number) >= count:
        raise RequestError(Problem(f"{key!r} is no tensor of a bank of projectors", "", "merge again"))
    return ProjectorKey(kind, int(number), name)


def projector_groups(tasks: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Return the names of the tasks of each group, from what the gate's record says of the tasks.

    Raises `RequestError` where groups are not numbered in the order of their first task.

    Examples:
        >>> from submerge.store import projector_groups
        >>> tasks = [{"name": "count", "group": 0}, {"name": "read", "group": 1}]
        >>> projector_groups(tasks)
        (('count',), ('read',))
    """
    groups: dict[Any, list[str]] = {}
    for task in tasks:
        groups.setdefault(task.get("group"), []).append(task["name"])
    if list(groups) != list(range(len(groups))):
        what = f"tasks are of the groups {', '.join(map(str, groups))}, which are no numbers 0, 1, …"
        raise RequestError(Problem(what, "tasks", "merge again"))
    return tuple(tuple(names) for names in groups.values())


@dataclass(frozen=True)
class ProjectorSettings:
    """How projectors' outputs are mixed, as the gate's record and recipes say it.

    Attributes:
        module: the path of the projector in the checkpoint's names, such as `multi_modal_projector`.
        temperature: τ of the softmax over the scores, from 0 (the nearest alone) on; by default 0.03 of
            cosines, and 1 of a discriminant.
        pooling: what of an input is compared, one of `PROJECTOR_POOLINGS`.
        centred: whether the prototypes' common mean is taken away before.
        top: the most projectors that an input's output is mixed of; None: all.
        key: what is compared, one of `PROJECTOR_KEYS`.
        score: how it is compared, one of `PROJECTOR_SCORES`.

    Examples:
        >>> from submerge.store import ProjectorSettings
        >>> ProjectorSettings("multi_modal_projector", temperature=0.05).to_mapping()["temperature"]
        0.05
    """

    module: str
    temperature: float = None  # type: ignore[assignment] # until it is made: of the score
    pooling: str = "mean"
    centred: bool = True
    top: int | None = None
    key: str = "image"
    score: str = "prototypes"

    def __post_init__(self) -> None:
        if self.temperature is None:
            object.__setattr__(self, "temperature", TEMPERATURES.get(str(self.score), 1.0))
        problems = [
            Problem(f"{name} is {getattr(self, name)!r}, and must be {wanted}", "projectors")
            for name, wanted, fits in self._rules()
            if not fits
        ]
        if problems:
            raise RequestError(problems)

    def _rules(self) -> list[tuple[str, str, bool]]:
        """Return for each field what it must be, and whether it is."""
        top, temperature = self.top, self.temperature
        positions_apart = self.score == "discriminant" and self.pooling == "position"
        return [
            ("module", "the path of a module", isinstance(self.module, str) and bool(self.module)),
            ("temperature", "a finite number ≥ 0", is_finite_number(temperature) and temperature >= 0),
            ("pooling", f"one of {', '.join(PROJECTOR_POOLINGS)}", self.pooling in PROJECTOR_POOLINGS),
            ("centred", "true or false", isinstance(self.centred, bool)),
            ("top", "a whole number ≥ 1, or nothing", top is None or is_count(top)),
            ("key", f"one of {', '.join(PROJECTOR_KEYS)}", self.key in PROJECTOR_KEYS),
            ("score", f"one of {', '.join(PROJECTOR_SCORES)}", self.score in PROJECTOR_SCORES),
            ("score", "prototypes, with pooling: position", not positions_apart),
        ]

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> ProjectorSettings:
        """Return settings by their names; raise `RequestError` for unknown names and values."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in settings if name not in names]:
            hint = f"there are {few(names, len(names))}"
            raise RequestError(Problem(f"unknown settings of projectors: {few(unknown)}", "projectors", hint))
        return cls(**{"module": "", **settings})

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings as plain data, as the gate's record has them.

        Of a score by prototypes nothing is said: there was no other one in earlier versions, which read it.
        """
        settings = dataclasses.asdict(self)
        if self.score == "prototypes":
            del settings["score"]
        return settings
