"""The plain routes: what the methods' authors compute, with torch.linalg on entire matrices in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["MERGES", "Route", "at_least", "routes", "seconds", "svds"]

Route = Mapping[str, int]
"""Operation -> how often the authors' code does it for one matrix."""

TOO_MUCH = 3e12
"""Floating-point operations of one step above which it is left out: it takes many minutes."""


def routes(m: int, n: int, count: int) -> dict[str, Route]:
    """Return method -> the decompositions and large products of its official implementation."""
    q = count * max(1, min(m, n) // count)
    return {
        "ssam": _steps(
            (f"gram {m}x{n}", count), (f"gram {n}x{m}", count), (f"eigh {m}", 1), (f"eigh {n}", 1)
        ),
        "tsv_m": _steps((f"svd {m}x{n}", count), (f"svd {m}x{q}", 1), (f"svd {n}x{q}", 1)),
        "iso_c": _steps((f"svd {m}x{n}", 1)),
        "iso_cts": _steps((f"svd {m}x{n}", 1 + count), (f"svd {m}x{q}", 1), (f"svd {n}x{q}", 1)),
        "knots_ties": _steps((f"svd {m}x{count * n}", 1)),
    }


def _steps(*steps: tuple[str, int]) -> Route:
    counts: dict[str, int] = {}
    for step, times in steps:
        counts[step] = counts.get(step, 0) + times
    return counts


def seconds(step: str, known: dict[str, float | None]) -> float | None:
    """Return how long a step takes, None where it is too much; each is timed once, and then in `known`."""
    if step not in known:
        kind, _, text = step.partition(" ")
        sizes = [int(part) for part in text.split("x")]
        known[step] = None if _work(kind, sizes) > TOO_MUCH else _time(kind, sizes)
    return known[step]


def at_least(route: Route, shape: tuple[int, int], known: dict[str, float | None]) -> tuple[float, bool]:
    """Return the seconds of a route, and whether that is all: steps that are too much count as less.

    For a large SVD stands that of one update, which is smaller; another step that is too much counts nothing.
    """
    total, complete = 0.0, True
    for step, times in route.items():
        taken = seconds(step, known)
        if taken is None:
            complete = False
            taken = seconds(f"svd {shape[0]}x{shape[1]}", known) if step.startswith("svd") else 0.0
        total += times * (taken or 0.0)
    return total, complete


def _work(kind: str, sizes: Sequence[int]) -> float:
    if kind == "gram":
        return 2.0 * sizes[0] ** 2 * sizes[1]
    if kind == "eigh":
        return 9.0 * sizes[0] ** 3
    long, short = max(sizes), min(sizes)
    return 6.0 * long * short**2 + 20.0 * short**3


def _time(kind: str, sizes: Sequence[int]) -> float:
    x = torch.randn(sizes[0], sizes[-1], generator=torch.Generator().manual_seed(0))
    if kind == "eigh":
        x = x + x.T
    run: Callable[[], object] = {
        "gram": lambda: x @ x.T,
        "eigh": lambda: torch.linalg.eigh(x),
        "svd": lambda: torch.linalg.svd(x, full_matrices=False),
    }[kind]
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def svds(updates: Sequence[torch.Tensor]) -> tuple[list[tuple[torch.Tensor, ...]], float]:
    """Return the SVD of every update, and the seconds that they took."""
    started = time.perf_counter()
    decomposed = [torch.linalg.svd(update, full_matrices=False) for update in updates]
    return decomposed, time.perf_counter() - started


def _tsv_m(updates: Sequence[torch.Tensor], decomposed: Sequence[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    k = max(1, min(updates[0].shape) // len(updates))
    u = torch.cat([u[:, :k] for u, _, _ in decomposed], 1)
    s = torch.cat([s[:k] for _, s, _ in decomposed])
    v = torch.cat([v[:k] for _, _, v in decomposed])
    return (_polar(u) * s) @ _polar(v)


def _iso_c(updates: Sequence[torch.Tensor], decomposed: Sequence[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    u, s, v = torch.linalg.svd(sum(updates), full_matrices=False)
    return s.mean() * (u @ v)


def _polar(x: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def _ssam(k: int) -> Callable[..., torch.Tensor]:
    def merged(
        updates: Sequence[torch.Tensor], decomposed: Sequence[tuple[torch.Tensor, ...]]
    ) -> torch.Tensor:
        u = torch.linalg.svd(torch.cat(list(updates), 1), full_matrices=False)[0][:, :k]
        v = torch.linalg.svd(torch.cat(list(updates)), full_matrices=False)[2][:k].T
        return u @ (u.T @ (sum(updates) / len(updates)) @ v) @ v.T

    return merged


MERGES: Mapping[str, Callable[..., torch.Tensor]] = {
    "tsv_m": _tsv_m,
    "iso_c": _iso_c,
    "ssam, rank 128": _ssam(128),
    "ssam": _ssam(1 << 30),
}
"""Merge -> its formula by plain SVDs, of the updates and their SVDs."""
