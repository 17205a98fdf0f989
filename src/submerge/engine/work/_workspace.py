"""The buffers of one worker: filled again for each chunk, so memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from submerge.deferred import torch
from submerge.store import byte_view

__all__ = ["Workspace"]

V = TypeVar("V")
_VIEWS = 64  # distinct lengths that are remembered; a model has few


class Workspace:
    """Named flat buffers that grow to the largest request and are then reused.

    Views of them are remembered by length, for most chunks are of one length and making a view
    costs as much as some of the arithmetic.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, int, int], object] = {}

    def host(self, use: str, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, memoryview]:
        """Return a CPU buffer [count] and its bytes; page-locked where the device copies from it."""

        def make() -> tuple[torch.Tensor, memoryview]:
            buffer = self._get(use, count, dtype, torch.device("cpu"))
            return buffer, byte_view(buffer)

        return self._remembered((use, dtype, count, 0), make)

    def work(self, use: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a buffer [count] on the worker's device."""
        return self._remembered((use, dtype, count, 0), lambda: self._get(use, count, dtype, self.device))

    def stack(
        self, use: str, rows: int, count: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return a buffer [rows, count] on the worker's device, and its rows."""

        def make() -> tuple[torch.Tensor, list[torch.Tensor]]:
            stacked = self._get(use, rows * count, dtype, self.device).view(rows, count)
            return stacked, list(stacked)

        return self._remembered((use, dtype, count, rows), make)

    def bring(self, raw: torch.Tensor, into: torch.Tensor) -> None:
        """Copy a host buffer into a working one of another dtype; the cast is made on the device."""
        if self.device.type != "cpu":
            raw = self.work("brought", raw.numel(), raw.dtype).copy_(raw)
        into.copy_(raw)

    def take(self, result: torch.Tensor, into: torch.Tensor) -> None:
        """Copy a result into a host buffer of another dtype; the cast is made on the device."""
        into.copy_(result if self.device.type == "cpu" else result.to(into.dtype))

    def _remembered(self, key: tuple[str, torch.dtype, int, int], make: Callable[[], V]) -> V:
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            view = make()
            self._views[key] = view
        return view  # type: ignore[return-value]

    def _get(self, use: str, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.numel() < count:
            pin = self.device.type == "cuda" and device.type == "cpu"
            buffer = torch.empty(count, dtype=dtype, device=device, pin_memory=pin)
            self._buffers[use, dtype] = buffer
            self._views.clear()  # they would keep the smaller buffer alive
        return buffer[:count]
