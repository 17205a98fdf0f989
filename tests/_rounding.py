"""Matrix products and decompositions that come out otherwise at every call, as on processors yet to be met.

A BLAS rounds the entries of a product by the order in which it adds the terms, which depends on the
processor, on the threads and on the sizes of the operands. So the same entry computed twice, in a product and
in a part of it, may be two numbers; and of eigenvectors even the signs are open. Code that compares such
numbers exactly is right on one machine and wrong on another. Here every entry is off by up to one unit in the
last place, each time, so that it is wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

__all__ = ["Rounding"]

PRODUCTS = (
    (torch.Tensor, "__matmul__"),
    (torch.Tensor, "__rmatmul__"),
    (torch.Tensor, "addmm_"),
    (torch, "mm"),
    (torch, "bmm"),
)
"""The functions of torch by which the library multiplies matrices."""


class Rounding:
    """Another rounding of torch's products, and other signs of its eigenvectors."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = torch.Generator().manual_seed(seed)

    def into(self, patch: pytest.MonkeyPatch) -> None:
        """Put the functions of torch into a wrapper, for all threads."""
        for owner, name in PRODUCTS:
            patch.setattr(owner, name, self._product(getattr(owner, name)))
        for name, changed in (("eigh", self._eigh), ("qr", self._qr), ("svd", self._svd)):
            patch.setattr(torch.linalg, name, self._decomposition(getattr(torch.linalg, name), changed))

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with each entry moved down, up, or not at all, to the next number of its type.

        Zeros stay: they are sums without terms, on any processor.
        """
        if not x.is_floating_point() or x.requires_grad:
            return x
        steps = torch.randint(-1, 2, x.shape, generator=self._draw)
        there = torch.full_like(x, torch.inf).copysign(steps.to(x.dtype))
        return torch.where((steps == 0) | (x == 0), x, torch.nextafter(x, there))

    def _signs(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return torch.randint(0, 2, (count,), generator=self._draw).to(x.dtype) * 2 - 1

    def _product(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        in_place = plain.__name__.endswith("_") and not plain.__name__.endswith("__")

        def product(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            if result is NotImplemented:
                return result
            moved = self.moved(result)
            return result.copy_(moved) if in_place or kwargs.get("out") is not None else moved

        return product

    def _decomposition(self, plain: Callable[..., Any], changed: Callable[..., Any]) -> Callable[..., Any]:
        def decomposition(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            return type(result)(tuple(self.moved(part) for part in changed(*result)))

        return decomposition

    def _eigh(self, values: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values, vectors * self._signs(vectors, vectors.shape[1])

    def _qr(self, q: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, ...]:
        signs = self._signs(q, q.shape[1])
        return q * signs, r * signs.unsqueeze(1)

    def _svd(self, u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> tuple[torch.Tensor, ...]:
        signs = self._signs(u, len(s))
        u, vh = u.clone(), vh.clone()
        u[:, : len(s)] *= signs
        vh[: len(s)] *= signs.unsqueeze(1)
        return u, s, vh
