"""Each token of a prompt runs with the parameters of its stream: those of text, or of another modality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from submerge.gating._assignment import Assignment
from submerge.gating._batch import tensors
from submerge.gating._layout import Group, Layout, UnsplitError

__all__ = ["TokenAssignment"]


class TokenAssignment(Assignment):
    """Each position is of a stream: `labels` [B, L] are 0 for text, k for `streams[k − 1]`.

    Text keeps the modules' own parameters; a stream gets the updates of its members, by default of member
    k − 1 alone. An input of L positions a row has these labels; of several rows a sample (beams) each has the
    sample's, and of several heads a position, [B, L, H], each has the position's. Any other length is that of
    a decoding step over a cache, or of positions that were picked from the prompt: these are all text. So a
    prompt that is fed in parts has to be labelled part by part, and one of a single token, which looks like
    such a step, is better labelled text.

    Examples:
        >>> import torch
        >>> from submerge.gating import TokenAssignment
        >>> streams = TokenAssignment(torch.tensor([[1, 1, 0, 0, 0]]))
        >>> [(group.members, group.size) for group in streams.layout("proj", (1, 5)).groups]
        [((), 3), ((0,), 2)]
        >>> streams.layout("proj", (1, 1)).is_resident
        True
    """

    picks_rows = True

    def __init__(self, labels: torch.Tensor, streams: Sequence[tuple[int, ...]] | None = None) -> None:
        count = int(labels.max()) if labels.numel() else 0
        self.labels = labels
        self.streams = tuple(streams) if streams is not None else tuple((k,) for k in range(count))
        if count > len(self.streams):
            raise ValueError(f"label {count} is of none of {len(self.streams)} streams")
        self._is_text = count == 0
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def acts_on(self, module: str) -> bool:
        return not self._is_text

    def layout(self, module: str, positions: Sequence[int]) -> Layout:
        key = tuple(positions)
        if key not in self._layouts:  # all modules have the same few shapes
            self._layouts[key] = self._layout(key)
        return self._layouts[key]

    def _layout(self, positions: tuple[int, ...]) -> Layout:
        labels = self._labels(positions)
        if labels is not None:
            return self._picked(labels)
        rows = torch.Size(positions).numel()
        return Layout((Group((), 0, rows, resident=True),), (slice(0, rows),))

    def _labels(self, positions: tuple[int, ...]) -> torch.Tensor | None:
        """Return the labels of all rows [N]; None where these are not the positions of the prompt.

        Raises `UnsplitError` where heads come first: [B, H, L] looks like [B, L, H] if there are L heads.
        """
        samples, length = self.labels.shape
        if positions[2:] == (length,) and positions[1] not in (1, length):
            raise UnsplitError
        if len(positions) == 1 and positions[0] % length == 0:  # [B · L]: flattened before
            positions = (positions[0] // length, length)
        if len(positions) < 2 or positions[1] != length or not positions[0] or positions[0] % samples:
            return None
        labels = self.labels.repeat_interleave(positions[0] // samples, dim=0)
        heads = torch.Size(positions[2:]).numel()
        return labels.flatten().repeat_interleave(heads)

    def _picked(self, labels: torch.Tensor) -> Layout:
        """Return the layout of rows by their labels [N]."""
        counts = torch.bincount(labels).tolist()
        groups, start = [], 0
        for label, count in enumerate(counts):
            if count:
                members = self.streams[label - 1] if label else ()
                groups.append(Group(members, start, start + count, resident=not label))
            start += count
        order = labels.argsort(stable=True)
        return Layout(tuple(groups), tuple(_place(order[group.rows]) for group in groups))

    def split(self, module: str, inputs: Any) -> Iterator[tuple[Group, Any, Assignment]]:
        """Yield all of the inputs where they are of one stream: a module of any kind may mix positions."""
        positions = next((x.shape[:2] for x in tensors(inputs) if x.ndim > 1), ())
        layout = self.layout(module, positions)
        if len(layout.groups) > 1:
            raise UnsplitError
        yield layout.groups[0], inputs, self


def _place(rows: torch.Tensor) -> slice | torch.Tensor:
    """Return the numbers of rows, in ascending order, as a slice where there is no other between them."""
    first, last = rows[[0, -1]].tolist()
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
