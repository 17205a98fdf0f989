"""Where PEFT looks for what an adapter holds: keys, shapes and factors of its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from submerge.deferred import torch
from submerge.errors import Problem, few
from submerge.store.adapter._parts import PACKED_ORDER, Kind
from submerge.store.format import Spilled, TensorSpec

__all__ = [
    "LoraKeys",
    "LoraModule",
    "file_key",
    "padded",
    "plan_entries",
    "plan_keys",
    "rows_key",
    "table_key",
]

Keys = tuple[str, str]
"""The keys of A and of B."""


@dataclass(frozen=True)
class LoraModule:
    """The factors of one parameter, as given, and how it is stored."""

    left: Spilled
    right: Spilled
    kind: Kind
    transposed: bool
    kernel: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The rank of the factors as given."""
        return self.right.shape[-2]

    @property
    def stored_transposed(self) -> bool:
        """True if B A is the transpose of what is stored."""
        return self.transposed or self.kind == "embedding"


@dataclass(frozen=True)
class LoraKeys:
    """The keys of A, of B and of alpha (if the file has any) of a LoRA file without configuration."""

    a: str
    b: str
    alpha: str | None = None


def file_key(name: str) -> str:
    """Return the key of a parameter whose new values are saved."""
    return f"base_model.model.{name}"


def table_key(name: str) -> str:
    """Return the key of the values that a parameter with factors has without them."""
    module, _, last = name.rpartition(".")
    return file_key(f"{module}.base_layer.{last}")


def rows_key(name: str) -> str:
    """Return the key of new values of some rows of a table."""
    return file_key(f"{name.removesuffix('.weight')}.token_adapter.trainable_tokens_delta")


def _pair(module: str, kind: Kind) -> Keys:
    """Return the keys of A and B."""
    if kind == "embedding":
        return file_key(f"{module}.lora_embedding_A"), file_key(f"{module}.lora_embedding_B")
    return file_key(f"{module}.lora_A.weight"), file_key(f"{module}.lora_B.weight")


def plan_keys(updates: Mapping[str, LoraModule], where: str, problems: list[Problem]) -> dict[str, Keys]:
    """Return the keys of A and B of each update; parameters of unknown order are problems."""
    wrapped: dict[str, list[str]] = {}
    for name, update in updates.items():
        if update.kind == "parameter":
            wrapped.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    keys = {}
    for name, update in updates.items():
        module, _, last = name.rpartition(".")
        leaves = wrapped.get(module, [])
        if update.kind != "parameter":
            keys[name] = _pair(module, update.kind)
        elif len(leaves) == 1:
            keys[name] = _pair(module, "linear")
        elif set(leaves) <= set(PACKED_ORDER):  # the first that the module defines is the innermost
            depth = sum(PACKED_ORDER.index(leaf) > PACKED_ORDER.index(last) for leaf in leaves)
            keys[name] = _pair(module + ".base_layer" * depth, "linear")
        else:
            what = f"in which order {module} defines {few(sorted(leaves))} is not known"
            problems.append(Problem(what, where, "leave out all but one of them"))
    return keys


def plan_entries(
    updates: Mapping[str, LoraModule], keys: Mapping[str, Keys], rank: int, code: str
) -> list[TensorSpec]:
    """Return key, type and shape of each factor, filled up to the common rank."""
    specs: list[TensorSpec] = []
    for name, update in updates.items():
        m, n, kernel = update.left.shape[-2], update.right.shape[-1], update.kernel
        outputs, inputs = (n, m) if update.stored_transposed else (m, n // math.prod(kernel))
        experts = math.prod(update.left.shape[:-2])
        key_a, key_b = keys[name]
        specs.append((key_a, code, (rank * experts, inputs, *kernel)))
        specs.append((key_b, code, (outputs, rank * experts, *(1 for _ in kernel))))
    return specs


def padded(
    update: LoraModule, left: torch.Tensor, right: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of the common rank as PEFT stores them, from left and right."""
    b, a = (right.mT, left.mT) if update.stored_transposed else (left, right)
    missing = rank - update.rank
    a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
    if a.ndim == 3:  # experts: [E, r, in] → [E·r, in], [E, out, r] → [out, r·E]
        return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
    return a, b
