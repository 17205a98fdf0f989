"""Which of a pass's tensors are used, so that only their values are held for the next pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from submerge.gating import tensors

__all__ = ["HeldTensor", "Uses"]

FORM = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")
) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point}
"""What tells nothing of a tensor's values."""


@dataclass(frozen=True)
class HeldTensor:
    """One tensor of an output: its values on the CPU, or as many NaN, without memory, that nothing uses."""

    values: torch.Tensor
    device: torch.device
    used: bool = True

    @property
    def size(self) -> int:
        return self.values.nbytes if self.used else 0

    def given(self) -> torch.Tensor:
        """Return the tensor, a new one: the model may change it in place."""
        return self.values.to(self.device, copy=True) if self.used else self.values


class Uses(TorchFunctionMode):
    """Notes which of the tensors that are watched are given to functions of torch.

    A use that it does not see, by other code than torch's, shows as NaN where numbers are floating-point.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changing = False
        self._watched: dict[int, tuple[torch.Tensor, HeldTensor]] = {}
        self._alive: set[int] = (
            set()
        )  # of those that are watched: another tensor may have had the number before
        self._used: set[int] = set()
        self._paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._paused and func not in FORM:
            self._used.update(self._alive.intersection(map(id, tensors((args, kwargs or {})))))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def watched(self, x: torch.Tensor) -> HeldTensor:
        """Return a tensor to hold, with its values as they are now; the tensor lives as long as this does."""
        self.changing |= x.requires_grad
        held = HeldTensor(x.detach().to("cpu", copy=True), x.device)
        self._watched[id(held)] = (x, held)
        self._alive.add(id(x))
        return held

    def settled(self, held: HeldTensor) -> HeldTensor:
        """Return what is to be held, now that all uses are known."""
        x, _ = self._watched[id(held)]
        if id(x) in self._used:
            return held
        nothing = torch.full((), float("nan"), dtype=x.dtype) if x.is_floating_point() else x.new_zeros(())
        return HeldTensor(nothing.to(x.device).expand(x.shape), x.device, used=False)
