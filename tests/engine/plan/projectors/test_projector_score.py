"""By what tasks are told apart: which score and which key are chosen, and what is warned of."""

from __future__ import annotations

import pytest
import torch

from _updates import normal
from submerge.algebra import GroupStatistics
from submerge.engine.plan import TaskStatistics, choose_score, overlaps_of
from submerge.errors import RequestError

SHARE = "let them share a projector, if one was trained from the other's"
BOTH = "their questions count, too (key: both)"


def statistics(vectors: torch.Tensor) -> GroupStatistics:
    return GroupStatistics.of(vectors, vectors.mean(0, keepdim=True))


def task(name: str, group: int, images: int, question: int) -> TaskStatistics:
    """Return a task with the images, and the question, of these numbers."""
    shown = normal(images, 40, 6) + 20 * normal(images + 100, 6)
    asked = (normal(question, 3) + torch.zeros(40, 3)).clone()
    return TaskStatistics(name, group, statistics(shown), statistics(asked))


def told(
    tasks: list[TaskStatistics], score: str | None = None, key: str | None = None
) -> tuple[str, str, list[str]]:
    chosen = choose_score(tasks, score, key)
    return chosen.score, chosen.key, [line.partition(": ")[2] for line in chosen.warnings]


def test_images_alone_are_compared_where_they_differ() -> None:
    tasks = [task("a", 0, 1, 1), task("b", 1, 2, 1)]
    assert told(tasks) == ("discriminant", "image", [])
    assert told(tasks, "prototypes", "both") == ("prototypes", "both", [])


def test_questions_count_where_images_are_alike() -> None:
    alike = [task("a", 0, 1, 1), task("b", 1, 1, 2), task("c", 2, 3, 3)]
    assert told(alike) == ("discriminant", "both", [BOTH] * 2)
    by_image = told(alike, key="image")
    assert by_image == ("discriminant", "image", [f"set 'key: both', or {SHARE}"] * 2)
    assert told(alike, key="text") == ("discriminant", "text", [])
    (first, _) = choose_score(alike, None, None).warnings
    assert first.startswith("the images of a overlap by 100% with those of b: ")


def test_questions_that_are_alike_do_not_help() -> None:
    same = [task("a", 0, 1, 1), task("b", 1, 1, 1)]
    assert told(same) == ("discriminant", "image", [f"set 'key: both', or {SHARE}"] * 2)
    half = [*same, task("c", 2, 2, 2), task("d", 3, 2, 3)]
    assert told(half) == ("discriminant", "both", [SHARE, SHARE, BOTH, BOTH])


def test_tasks_of_one_projector_need_not_be_told_apart() -> None:
    tasks = [task("a", 0, 1, 1), task("b", 0, 1, 1), task("c", 1, 2, 2)]
    assert told(tasks) == ("discriminant", "image", [])
    overlaps = overlaps_of(tasks)
    assert overlaps is not None
    assert overlaps[0, 1] == 0


def test_without_statistics_prototypes_are_compared() -> None:
    tasks = [task("a", 0, 1, 1), TaskStatistics("b", 1, None, None)]
    assert told(tasks) == ("prototypes", "image", [])
    assert overlaps_of(tasks) is None
    with pytest.raises(RequestError, match="no statistics of images of b"):
        choose_score(tasks, "discriminant", None)
    images = task("b", 1, 2, 2).images
    asked = [tasks[0], TaskStatistics("b", 1, images, None)]
    assert told(asked, key="both") == ("prototypes", "both", [])
    with pytest.raises(RequestError, match="no statistics of questions of b"):
        choose_score(asked, "discriminant", "both")
    assert told(asked, "discriminant", "image")[0] == "discriminant"
    one = [TaskStatistics(name, k, statistics(normal(k, 1, 6)), None) for k, name in enumerate("ab")]
    assert told(one) == ("prototypes", "image", [])
    with pytest.raises(RequestError, match="images are all alike"):
        choose_score(one, "discriminant", None)


def test_vectors_of_other_encoders_are_not_compared() -> None:
    other = TaskStatistics("b", 1, statistics(normal(2, 9, 4)), None)
    assert told([task("a", 0, 1, 1), other]) == ("prototypes", "image", [])
