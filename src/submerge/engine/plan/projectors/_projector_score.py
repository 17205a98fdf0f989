"""By what tasks are told apart: a discriminant or prototypes, by images, questions, or both."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from submerge.algebra import QUESTION_FLOOR, GroupStatistics, Separation, grouped_discriminant
from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few
from submerge.store import discriminant_key, question_discriminant_key

__all__ = [
    "MUCH_OVERLAP",
    "ProjectorScore",
    "TaskStatistics",
    "bank_rows",
    "choose_score",
    "overlaps_of",
]

MUCH_OVERLAP = 0.25
"""The overlap from which on two tasks are not told apart: one image of eight is taken for the other's."""


@dataclass(frozen=True)
class TaskStatistics:
    """The statistics of a task's images and questions; its name, and the number of its projector."""

    name: str
    group: int
    images: GroupStatistics | None
    questions: GroupStatistics | None


@dataclass(frozen=True)
class ProjectorScore:
    """What is compared, and how, as of `store.ProjectorSettings`; and what deserves a look."""

    score: str
    key: str
    warnings: tuple[str, ...] = ()


def choose_score(tasks: Sequence[TaskStatistics], score: str | None, key: str | None) -> ProjectorScore:
    """Return the score and the key for some tasks; those that are given stay as they are.

    By default it is a discriminant, where there are statistics of all tasks; and images alone are compared,
    unless those of two tasks overlap much, and their questions do not. Raises `RequestError` where a
    discriminant is asked for, and there are none.
    """
    images = _separation(tasks, questions=False)
    alike = [] if images is None else list(_alike(tasks, images))
    asked = alike if key is None else key != "image"
    questions = _separation(tasks, questions=True) if asked else None
    resolved = _resolved(tasks, alike, images, questions) if key is None else set()
    chosen = key or ("both" if resolved else "image")
    compared = {"images": images} if chosen == "image" else {"images": images, "questions": questions}
    lacking = [part for part, separation in compared.items() if separation is None]
    if score == "discriminant" and lacking:
        raise _refusal(tasks, lacking[0])
    told = key in (None, "image")  # who asks for questions knows
    warnings = tuple(_warnings(tasks, alike, resolved)) if told else ()
    return ProjectorScore(score or ("prototypes" if lacking else "discriminant"), chosen, warnings)


def bank_rows(groups: Sequence[Sequence[TaskStatistics]], key: str) -> list[dict[str, torch.Tensor]]:
    """Return what a bank has of the discriminant of each group: of images, and of questions that count.

    All tasks have statistics of what is compared, as `choose_score` has found.
    """
    images = grouped_discriminant([[_known(task.images) for task in group] for group in groups])
    own = [{discriminant_key(k): rows} for k, rows in enumerate(images)]
    if key != "image":
        asked = [[_known(task.questions) for task in group] for group in groups]
        for k, rows in enumerate(grouped_discriminant(asked, floor=QUESTION_FLOOR)):
            own[k][question_discriminant_key(k)] = rows
    return own


def _known(statistics: GroupStatistics | None) -> GroupStatistics:
    assert statistics is not None
    return statistics


def overlaps_of(tasks: Sequence[TaskStatistics]) -> torch.Tensor | None:
    """Return how much the images of each task overlap with another's, [T, T] float64; 0 within a group.

    None where statistics of some are missing, or say nothing.
    """
    separation = _separation(tasks, questions=False)
    return None if separation is None else _between_groups(tasks, separation)


def _between_groups(tasks: Sequence[TaskStatistics], separation: Separation) -> torch.Tensor:
    overlaps = separation.overlaps()
    groups = torch.tensor([task.group for task in tasks])
    return overlaps.masked_fill(groups[:, None] == groups, 0.0)


def _separation(tasks: Sequence[TaskStatistics], *, questions: bool) -> Separation | None:
    """Return what tells tasks apart; None where statistics are missing, of other widths, or say nothing."""
    each = [task.questions if questions else task.images for task in tasks]
    own = [statistics for statistics in each if statistics is not None]
    if len(own) < len(tasks) or len({one.means.shape[1] for one in own}) != 1:
        return None
    try:
        return Separation.of(own, floor=QUESTION_FLOOR if questions else 0.0)
    except ValueError:  # one image of each task has no scatter
        return None


def _refusal(tasks: Sequence[TaskStatistics], part: str) -> RequestError:
    """Return that there is no discriminant of the images or questions of some tasks."""
    lacking = [task.name for task in tasks if getattr(task, part) is None]
    why = f"there are no statistics of {part} of {few(lacking, 8)}" if lacking else f"{part} are all alike"
    hint = "add data again, with several images of each task; or choose score: prototypes"
    return RequestError(Problem(f"score is discriminant, and {why}", "projectors", hint))


def _alike(tasks: Sequence[TaskStatistics], separation: Separation) -> Iterator[tuple[int, int, float]]:
    """Yield tasks whose images overlap much with another task's, that task, and how much."""
    overlaps = _between_groups(tasks, separation)
    for i in range(len(tasks)):
        overlap, j = overlaps[i].max(0)
        if overlap > MUCH_OVERLAP:
            yield i, int(j), float(overlap)


def _resolved(
    tasks: Sequence[TaskStatistics],
    alike: Sequence[tuple[int, int, float]],
    images: Separation | None,
    questions: Separation | None,
) -> set[int]:
    """Return which of the tasks whose images are alike are told from others with their questions."""
    if not alike or images is None or questions is None:
        return set()
    apart = _between_groups(tasks, images + questions).amax(1) <= MUCH_OVERLAP
    return {i for i, _, _ in alike if apart[i]}


def _warnings(
    tasks: Sequence[TaskStatistics], alike: Sequence[tuple[int, int, float]], resolved: Collection[int]
) -> Iterator[str]:
    """Yield whose images overlap with another task's, and what was done about it or may be."""
    hint = "let them share a projector, if one was trained from the other's"
    hint = hint if resolved else f"set 'key: both', or {hint}"
    for i, j, overlap in alike:
        what = f"the images of {tasks[i].name} overlap by {overlap:.0%} with those of {tasks[j].name}"
        yield f"{what}: {'their questions count, too (key: both)' if i in resolved else hint}"
