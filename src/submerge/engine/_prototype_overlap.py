"""Tasks whose images are taken for those of others, by the prototypes of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from submerge.algebra import Prototypes
from submerge.deferred import torch
from submerge.engine.plan import ProjectorPlan

__all__ = ["overlap_warnings"]

MUCH = 0.25
"""The share of a task's images from which on it is not told apart from another."""


def overlap_warnings(
    projectors: ProjectorPlan, images: Sequence[torch.Tensor], vectors: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Yield which tasks vision alone does not tell apart.

    Args:
        projectors: with their tasks.
        images: the prototypes [m, d] of each task.
        vectors: by the names of tasks, what each of their images was pooled to, [N, d].
    """
    groups = [torch.cat([images[task] for task in group.tasks]) for group in projectors.groups]
    prototypes = Prototypes(groups)
    names = [projectors.tasks[group.tasks[0]].name for group in projectors.groups]
    for task in projectors.tasks:
        if task.name not in vectors:
            continue
        similarity = prototypes.similarity(vectors[task.name], centred=projectors.settings.centred)
        own = similarity[:, task.group].clone()
        similarity[:, task.group] = -torch.inf
        nearest, number = similarity.max(1)
        taken = number[nearest >= own]
        if len(taken) > MUCH * len(own):
            other = names[int(taken.mode().values)]
            what = f"{len(taken) / len(own):.0%} of the images of {task.name} are no nearer to its prototypes"
            yield f"{what} than to those of {other}: let them share a projector, or set 'key: both'"
