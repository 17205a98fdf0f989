"""The buffers of one worker: filled again for each chunk, so memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from submerge.deferred import np, npt

if TYPE_CHECKING:
    import torch

__all__ = ["Workspace"]

V = TypeVar("V")
_VIEWS = 64  # distinct lengths that are remembered; a model has few
_LINE = 64  # bytes of a cache line, at which buffers begin: no vector lies in two


class Workspace:
    """Named flat buffers that grow to the largest request and are then reused.

    Views of them are remembered by length, for most chunks are of one length and making a view
    costs as much as some of the arithmetic.

    Attributes:
        device: where folds that are written with torch compute.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = device
        self._buffers: dict[tuple[str, np.dtype[Any]], npt.NDArray[Any]] = {}
        self._views: dict[tuple[str, np.dtype[Any], int, int], object] = {}

    def row(self, use: str, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array [count]."""
        return self._remembered((use, dtype, count, 0), lambda: self._get(use, count, dtype))

    def stack(
        self, use: str, rows: int, count: int, dtype: np.dtype[Any]
    ) -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]:
        """Return an array [rows, count], and its rows."""

        def make() -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]:
            stacked = self._get(use, rows * count, dtype).reshape(rows, count)
            return stacked, list(stacked)

        return self._remembered((use, dtype, count, rows), make)

    def _remembered(self, key: tuple[str, np.dtype[Any], int, int], make: Callable[[], V]) -> V:
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            view = make()
            self._views[key] = view
        return view  # type: ignore[return-value]

    def _get(self, use: str, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.size < count:
            buffer = _aligned(count, dtype)
            self._buffers[use, dtype] = buffer
            self._views.clear()  # they would keep the smaller buffer alive
        return buffer[:count]


def _aligned(count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    data = np.empty(count * dtype.itemsize + _LINE, np.uint8)
    first = -data.ctypes.data % _LINE
    return data[first : first + count * dtype.itemsize].view(dtype)
