"""The buffers of one worker: filled again for each chunk, so memory does not grow with the model."""

from __future__ import annotations

import torch

__all__ = ["Workspace"]


class Workspace:
    """Named flat buffers that grow to the largest request and are then reused."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pin = device.type == "cuda"
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def host(self, use: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a CPU buffer [count]; page-locked where the device copies from it."""
        return self._get(use, count, dtype, torch.device("cpu"))

    def work(self, use: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a buffer [count] on the worker's device."""
        return self._get(use, count, dtype, self.device)

    def _get(self, use: str, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        found = self._buffers.get((use, dtype))
        if found is None or found.numel() < count:
            pin = self._pin and device.type == "cpu"
            found = torch.empty(count, dtype=dtype, device=device, pin_memory=pin)
            self._buffers[use, dtype] = found
        return found[:count]


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, writable, without a copy."""
    return tensor.view(torch.uint8).numpy().data
