"""Scores of an answer beside its references: the best reference counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isclose

from benchmarks.replication.skills.calculations import value

__all__ = ["METRICS", "equal_value", "exact_match", "rouge_l", "slot_f1"]


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 where the answer is one of the references but for white space, else 0.0."""
    return float(" ".join(answer.split()) in {" ".join(one.split()) for one in references})


def equal_value(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 where the answer is a calculation that is worth what a reference is, else 0.0."""
    worth = value(answer)
    values = [value(one) for one in references]
    return float(worth is not None and any(one is not None and isclose(worth, one) for one in values))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the largest ROUGE-L over the references, in [0, 1] (Lin, 2004).

    It is the F1 of the longest common subsequence of words. Marks count as words, for they are half of a
    command line; upper and lower case are one.

    Examples:
        >>> rouge_l("find . -name x", ["find . -type f"])  # find . - of five words each
        0.6
    """
    return max(_f1(_words(answer), _words(one)) for one in references)


def slot_f1(answer: str, references: Sequence[str]) -> float:
    """Return the largest F1 of the slots that were found with their values, in [0, 1].

    Examples:
        >>> slot_f1("city=arp; cuisine=thai", ["city=arp; cuisine=gluten free"])
        0.5
    """
    return max(_slot_f1(_slots(answer), _slots(one)) for one in references)


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact match": exact_match,
    "equal value": equal_value,
    "ROUGE-L": rouge_l,
    "slot F1": slot_f1,
}


def _slots(text: str) -> set[str]:
    return {" ".join(slot.split()) for slot in text.split(";")}


def _slot_f1(answer: set[str], reference: set[str]) -> float:
    return 2 * len(answer & reference) / (len(answer) + len(reference))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = _common(answer, reference)
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the usual table after another."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of this row's word without it and without the other's
        for place, against in enumerate(other, 1):
            above = lengths[place]
            lengths[place] = before + 1 if word == against else max(above, lengths[place - 1])
            before = above
    return lengths[-1]
