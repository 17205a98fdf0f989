"""Each token of a prompt gets the member of its stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from submerge.gating._assignment import Assignment
from submerge.gating._batch import tensors
from submerge.gating._layout import Group, Layout, UnsplitError

__all__ = ["TokenAssignment"]


class TokenAssignment(Assignment):
    """Each position gets the update of its stream: `labels` [B, L] are members, one a token of the prompt.

    An input of L positions a row has these labels; of several rows a sample (beams) each has the sample's.
    Any other length is that of a decoding step over a cache, or of positions that were picked from the
    prompt: these are all of the `default` stream, text. So a prompt that is fed in parts has to be labelled
    part by part, and one of a single token, which looks like such a step, is better labelled text.

    Examples:
        >>> import torch
        >>> from submerge.gating import TokenAssignment
        >>> streams = TokenAssignment(torch.tensor([[1, 1, 0, 0, 0]]))
        >>> [(group.members, group.size) for group in streams.layout("proj", (1, 5)).groups]
        [((0,), 3), ((1,), 2)]
        >>> [(group.members, group.size) for group in streams.layout("proj", (1, 1)).groups]
        [((0,), 1)]
    """

    def __init__(self, labels: torch.Tensor, default: int = 0) -> None:
        self.labels, self.default = labels, default
        self._layouts: dict[int, Layout] = {}

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        rows, labels = math.prod(positions), self.labels.numel()
        length = positions[-1] if len(positions) > 1 else self.labels.shape[1]  # [B · L]: flattened before
        if length != self.labels.shape[1] or not rows or rows % labels:
            return Layout((Group((self.default,), 0, rows),))
        if rows not in self._layouts:
            repeated = self.labels.repeat_interleave(rows // labels, dim=0)
            self._layouts[rows] = _sorted(repeated.flatten())
        return self._layouts[rows]

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        """Yield all of the inputs where they are of one stream: a module of any kind may mix positions."""
        positions = next((x.shape[:2] for x in tensors(inputs) if x.ndim > 1), ())
        layout = self.layout(module, positions)
        if len(layout.groups) > 1:
            raise UnsplitError
        yield layout.groups[0], inputs, self


def _sorted(labels: torch.Tensor) -> Layout:
    """Return the layout of rows by their labels [N], the most frequent first."""
    counts = torch.bincount(labels).tolist()
    ranked = sorted((k for k, count in enumerate(counts) if count), key=lambda k: -counts[k])
    stops = [sum(counts[k] for k in ranked[: i + 1]) for i in range(len(ranked))]
    groups = tuple(Group((k,), stop - counts[k], stop) for k, stop in zip(ranked, stops, strict=True))
    if len(groups) == 1:
        return Layout(groups)
    place = torch.empty(len(counts), dtype=torch.long)
    place[ranked] = torch.arange(len(ranked))
    order = place.to(labels.device)[labels].argsort(stable=True)
    return Layout(groups, order, order.argsort())
