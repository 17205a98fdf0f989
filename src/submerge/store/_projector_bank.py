"""Whether the bank of a gate of projectors is complete: a projector and prototypes for each group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from submerge.errors import RequestError, few
from submerge.store._projectors import (
    ProjectorKey,
    ProjectorSettings,
    discriminant_key,
    projector_groups,
    prototype_key,
    question_discriminant_key,
    question_key,
    read_projector_key,
)
from submerge.store.folder import GateRecord

__all__ = ["projector_bank_problems"]


def projector_bank_problems(gate: GateRecord, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return what is wrong with a bank, by the shapes of its tensors, and with what the gate's record says.

    Examples:
        >>> from submerge.store import GateRecord, projector_bank_problems
        >>> gate = GateRecord("projectors", ({"name": "a", "group": 0},), {"module": "projector"})
        >>> projector_bank_problems(gate, {"modules.0.projector.weight": (4, 3)})
        ['the bank lacks prototypes.0']
    """
    try:
        rules, count = ProjectorSettings.from_mapping(gate.settings), len(projector_groups(gate.tasks))
        keys = [read_projector_key(name, count) for name in shapes]
    except RequestError as error:
        return [problem.what for problem in error.problems]
    wanted = [key(k) for key in _keys(rules) for k in range(count)]
    lacking = [name for name in wanted if name not in shapes]
    problems = [f"the bank lacks {few(lacking)}"] if lacking else []
    return [*problems, *_widths(shapes, count), *_modules(keys, rules.module, count)]


def _keys(rules: ProjectorSettings) -> Sequence[Callable[[int], str]]:
    """Return the names of what a bank has of each group, besides its projector."""
    fitted = rules.score == "discriminant"
    images = [prototype_key, *([discriminant_key] if fitted else [])]
    questions = [question_key, *([question_discriminant_key] if fitted else [])]
    return images if rules.key == "image" else images + questions


def _widths(shapes: Mapping[str, Sequence[int]], count: int) -> Iterator[str]:
    """Yield a problem for prototypes that are no rows of one width, and for a discriminant of others."""
    for key, rows_of in ((prototype_key, discriminant_key), (question_key, question_discriminant_key)):
        own = [tuple(shapes[key(k)]) for k in range(count) if key(k) in shapes]
        if any(len(shape) != 2 or not shape[0] for shape in own) or len({shape[1:] for shape in own}) > 1:
            yield f"{few([key(k) for k in range(count)])} are no vectors of one width"
            continue
        rows = {k: tuple(shapes[rows_of(k)]) for k in range(count) if rows_of(k) in shapes}
        fitting = {k: (shape[0], shape[1] + 1) for k, shape in enumerate(own)}
        if unfit := [rows_of(k) for k, shape in rows.items() if shape != fitting.get(k)]:
            yield f"{few(unfit)} are no rows for the prototypes of their group"


def _modules(keys: Sequence[ProjectorKey], module: str, count: int) -> Iterator[str]:
    """Yield a problem where groups have not the same parameters of the projector."""
    names: list[set[str]] = [
        {key.name for key in keys if key.is_module and key.group == k} for k in range(count)
    ]
    every = names[0].union(*names)
    if not all(names):
        yield f"groups have no projector: {few([str(k) for k in range(count) if not names[k]])}"
    elif differing := every - names[0].intersection(*names):
        yield f"not all groups have {few(sorted(differing))}"
    if foreign := [name for name in every if not name.startswith(f"{module}.")]:
        yield f"these are no parameters of {module}: {few(sorted(foreign))}"
