"""What a method whose gate is evaluated for each input needs of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from submerge.methods._contract import TensorSpec, Values

__all__ = ["BankBound", "BankBoundRule", "GateSettings", "GateSpec"]

GateSettings: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]], int], dict[str, Any]]
"""Maps the single options that a recipe gives, the tensors' shapes by name, and the number of models to the
gate's settings; refuses impossible ones with `RequestError`."""


@dataclass(frozen=True)
class BankBound:
    """The most that a bank holds of one update: bytes of `rank` triplets; rank None: of the dense update.

    `shared` bytes are held besides, once for all updates of the tensor.

    Examples:
        >>> from submerge.methods import BankBound
        >>> BankBound(nbytes=4 * 2 * (64 + 1 + 64), rank=2).nbytes
        1032
    """

    nbytes: int
    rank: int | None = None
    shared: int = 0


BankBoundRule: TypeAlias = Callable[[TensorSpec, Values, int], BankBound]
"""Maps a tensor, its options, and the rank of an update that is not zero (0: not known) to the bound."""


@dataclass(frozen=True)
class GateSpec:
    """What a method whose gate is evaluated for each input needs of the engine, one need a field.

    The checkpoint that comes out is the static merge. Beside it lie the gate's settings and a bank with what
    the method returned in `Merged.bank`.

    Attributes:
        settings: the gate's settings, which `submerge.json` holds.
        bound: the most that the bank holds of an update; None where it holds nothing of updates.
        every_tensor: whether `matrix` gets every tensor, in its real dimensions; else weight matrices alone.
        own_heads: whether tensors that the base lacks, or has in another shape, are a task's own, and go to
            the bank. Without a gate they are reported, or refused.
        partial_models: whether a model may lack what its task has no use for, such as a pooler or a tower.
        assembles: whether its controller gates parameters that transformers makes of several tensors of the
            files, such as packed experts. Else a model with updates of such tensors is refused.
        adapter_output: whether the result may be an adapter, which holds the static merge alone.
        usage: lines of Python for the model card, in which `model` is what `submerge.load` gave; `{task}`
            stands for the name of the first task, in quotes.

    Examples:
        >>> from submerge.methods import METHODS, GateSpec
        >>> gate = METHODS["mass"].gate
        >>> gate.every_tensor, gate.own_heads, gate.adapter_output
        (True, True, False)
        >>> GateSpec(settings=lambda given, shapes, count: dict(given)).partial_models
        False
    """

    settings: GateSettings
    bound: BankBoundRule | None = None
    every_tensor: bool = False
    own_heads: bool = False
    partial_models: bool = False
    assembles: bool = False
    adapter_output: bool = False
    usage: tuple[str, ...] = ()
