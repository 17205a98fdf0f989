"""Served tasks, which the tests of several files share."""

from _served import bert, llama, model

__all__ = ["bert", "llama", "model"]
