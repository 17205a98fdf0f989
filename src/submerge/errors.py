"""The errors that users meet: *what was wrong: where — what to do*."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "Problem",
    "RequestError",
    "SubmergeError",
    "WorkError",
    "counted",
    "did_you_mean",
    "few",
    "first_line",
    "nearest",
    "size",
    "writing",
]


MOST_COMPARED = 200
"""Letters of a name that are compared with others, which takes the square of their number."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what was found, where (file, tensor, recipe line), and what to do.

    Examples:
        >>> from submerge import Problem
        >>> print(Problem("unknown key 'sed'", "recipe.yaml:9", "did you mean 'seed'?"))
        recipe.yaml:9: unknown key 'sed' — did you mean 'seed'?
    """

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} — {self.hint}" if self.hint else text


def few(items: Iterable[str], most: int = 3) -> str:
    """Return the first few items as text, and how many more there are: `a, b, c and 7 more`."""
    listed = list(items)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return how many there are as text: `1 token`, `2 tokens`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that is spelled most like `name`, or None where none is much like it.

    Capitals are as small letters, and `-` and spaces are as `_`. A candidate that is a word of the name is
    like it, too: `ties` of `TIES-merging`.
    """
    import difflib

    plain = {_plain(candidate): candidate for candidate in candidates}
    meant = _plain(name)[:MOST_COMPARED]
    close = difflib.get_close_matches(meant, plain, n=1) or [w for w in meant.split("_") if w in plain]
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def did_you_mean(name: str, candidates: Iterable[str], otherwise: str | None = None) -> str:
    """Return the hint for a name that is not known: `did you mean 'x'?`, where a candidate is much like it.

    Else it is what to do `otherwise`; by default all candidates, as `there are a, b, c`.
    """
    known = list(candidates)
    if (close := nearest(name, known)) is not None:
        return f"did you mean '{close}'?"
    return f"there are {', '.join(known)}" if otherwise is None else otherwise


def size(count: float) -> str:
    """Return a number of bytes as a person reads it: 2.20 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < (1000 if unit == "B" else 999.5):  # or three digits would round to 1e+03
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class SubmergeError(Exception):
    """Base of every error that Submerge raises on purpose; `exit_code` is the command line's.

    Examples:
        >>> import submerge
        >>> try:
        ...     submerge.merge("no-such-recipe.yaml", "out")
        ... except submerge.SubmergeError as error:
        ...     print(error.exit_code)
        2
    """

    exit_code = 1


class RequestError(SubmergeError):
    """The request was wrong (exit code 2): `problems` holds every `Problem` that was found, not the first.

    Examples:
        >>> import submerge
        >>> try:
        ...     submerge.load_recipe({"merge_method": "tie", "models": [{"model": "chat"}], "sed": 1})
        ... except submerge.RequestError as error:
        ...     print(len(error.problems), error.problems[0].what)
        2 unknown key 'sed'
    """

    exit_code = 2

    def __init__(self, problems: Problem | str | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class WorkError(SubmergeError):
    """The request was fine and the work failed (exit code 1): disk full, file damaged, NaN met.

    Examples:
        >>> import torch
        >>> import submerge
        >>> bad = {"weight": torch.tensor([1.0, float("nan")])}
        >>> try:
        ...     submerge.merge_state_dicts([bad, bad], weight=0.5)
        ... except submerge.WorkError as error:
        ...     print(str(error).splitlines()[-1].strip())
        weight: 1 in states[0], 1 in states[1], 1 in the output
    """


@contextmanager
def writing(what: str, hint: str = "free some space, or choose another folder") -> Iterator[None]:
    """Raise `WorkError` for what the disk refuses: what failed, the system's reason, and what to do."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"{what} ({error.strerror}) — {hint}") from error
