"""State dicts: comparing them, and sums of them."""

from __future__ import annotations

import torch

from _support import State

__all__ = ["assert_close", "assert_equal", "plus", "zeros"]


def assert_close(one: State, other: State, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    assert list(one) == list(other)
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], rtol=rtol, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_equal(one: State, other: State) -> None:
    assert_close(one, other, rtol=0, atol=0)


def plus(base: State, updates: State, scale: float = 1.0) -> State:
    return {key: base[key] + scale * updates[key] for key in base}


def zeros(like: State) -> State:
    return {key: torch.zeros_like(value) for key, value in like.items()}
