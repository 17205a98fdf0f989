"""The eight skills: where their examples come from, how they are asked for, and how answers are scored."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replication.rows import seed_of
from benchmarks.replication.skills.calculations import calculation, value

__all__ = ["PARTS", "SKILLS", "Example", "Skill", "read"]

PARTS = ("train", "validation", "test")
ROUNDED = 0.01
"""How far answers of the set may be rounded."""
Fields = Mapping[str, Any]
"""A line of a set, as its JSON has it."""


@dataclass(frozen=True)
class Example:
    """What the user says, and the answers that are right."""

    question: str
    answers: tuple[str, ...]


def _text(fields: Fields) -> str:
    return str(fields["p"])


def _columns(fields: Fields) -> str:
    return f"Columns: {', '.join(fields['cols'])}\nQuestion: {fields['p']}"


def _word(fields: Fields) -> str:
    return f"Word: {fields['p']}\nFeatures: {fields['tag']}"


def _choices(fields: Fields) -> str:
    return "\n".join([fields["p"], *(f"- {choice}" for choice in fields["choices"])])


def _references(fields: Fields) -> tuple[str, ...]:
    return tuple(fields["r"])


def _right_choice(fields: Fields) -> tuple[str, ...]:
    return (fields["choices"][fields["key"]],)


def _calculation(fields: Fields) -> tuple[str, ...]:
    """Return the calculation; none where the set's own answer differs, for some numbers are not meant."""
    try:
        text = calculation(fields["eq"], fields["p"])
    except IndexError:
        return ()
    worth, right = value(text), float(fields["r"][0])
    return (text,) if worth is not None and abs(worth - right) <= ROUNDED * max(1.0, abs(right)) else ()


@dataclass(frozen=True)
class Skill:
    """A skill of a chat LM. `instruction` is the system message, `new_tokens` how long an answer may get."""

    name: str
    source: str
    instruction: str
    new_tokens: int
    metric: str = "exact match"
    question: Callable[[Fields], str] = _text
    answers: Callable[[Fields], tuple[str, ...]] = _references


SKILLS = (
    Skill(
        "arithmetic",
        "mawps_asdiv",
        "Write the calculation that solves the problem.",
        20,
        "equal value",
        answers=_calculation,
    ),
    Skill("sql", "wikisql", "Write an SQL query for the question.", 44, question=_columns),
    Skill("bash", "nl2bash", "Write a Bash command line for the task.", 40, "ROUGE-L"),
    Skill("slots", "snips", "List the slots and values in the request.", 36, "slot F1"),
    Skill("inflection", "inflect_en", "Inflect the English word.", 8, question=_word),
    Skill("grammar", "jfleg", "Correct the grammar of the sentence and make it fluent.", 44, "ROUGE-L"),
    Skill(
        "choice",
        "arc_easy",
        "Answer the question with one of the choices.",
        16,
        question=_choices,
        answers=_right_choice,
    ),
    Skill("data_to_text", "e2e", "Write a restaurant description from the facts.", 48, "ROUGE-L"),
)


def read(skill: Skill, data: Path, most: Mapping[str, int]) -> dict[str, list[Example]]:
    """Return part -> its examples, at most so many, drawn with a fixed seed.

    No question of the validation or the test is trained on.
    """
    drawn = {part: _drawn(skill, data, part) for part in PARTS}
    held_out = {one.question for part in PARTS[1:] for one in drawn[part][: most[part]]}
    drawn["train"] = [one for one in drawn["train"] if one.question not in held_out]
    return {part: examples[: most[part]] for part, examples in drawn.items()}


def _drawn(skill: Skill, data: Path, part: str) -> list[Example]:
    """Return the examples of a part of the set in an order of their own, which no run's seed changes."""
    with gzip.open(data / "text" / skill.source / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    examples = [Example(skill.question(row), answers) for row in rows if (answers := skill.answers(row))]
    order = np.random.default_rng(seed_of("skills", skill.name, part)).permutation(len(examples))
    return [examples[i] for i in order]
