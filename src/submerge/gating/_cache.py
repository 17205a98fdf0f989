"""What was computed before and may be needed again, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, MutableMapping

import torch

__all__ = ["Recent"]


class Recent(MutableMapping[Hashable, torch.Tensor]):
    """Tensors by key; when they are more than `limit` bytes, those that were used longest ago go.

    Examples:
        >>> import torch
        >>> from submerge.gating import Recent
        >>> recent = Recent(8)
        >>> recent.update({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)})
        >>> sorted(recent)
        ['b', 'c']
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._tensors: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def found_or(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of a key; one that is not there is made, and kept if there is room."""
        if key in self:
            return self[key]
        tensor = make()
        self[key] = tensor
        return tensor

    def __getitem__(self, key: Hashable) -> torch.Tensor:
        found = self._tensors[key]
        self._tensors.move_to_end(key)
        return found

    def __setitem__(self, key: Hashable, tensor: torch.Tensor) -> None:
        self.pop(key, None)
        if tensor.nbytes > self.limit:
            return
        self._tensors[key] = tensor
        self.held += tensor.nbytes
        while self.held > self.limit:
            self.held -= self._tensors.popitem(last=False)[1].nbytes

    def __delitem__(self, key: Hashable) -> None:
        self.held -= self._tensors.pop(key).nbytes

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
