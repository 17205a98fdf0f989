"""Merge coefficients as parameters: which modules share one, and the scales that they make.

module    λ_k of each module          the default, Σ_modules K numbers
type      λ_k of each kind of module  modules of one last name (q_proj, …) share it
adapter   λ_k                         K numbers
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

__all__ = ["Parametrisation"]

Key: TypeAlias = tuple[str, int]

_GROUPS: dict[str, Callable[[str], str]] = {
    "module": lambda path: path,
    "type": lambda path: path.rpartition(".")[2],
    "adapter": lambda _: "",
}


class Parametrisation:
    """The coefficients of K adapters, one parameter for each group of modules and adapter that changes them.

    Each is a parameter of its own, in float64, so that an optimiser leaves out those that got no gradient:
    one that is given zeros for them would still let them decay.

    Args:
        members: the adapters that change each module.
        kind: which modules share a coefficient.
        initial: the value of all of them.
        frozen: adapters whose coefficients are no variables.
    """

    def __init__(
        self, members: Mapping[str, Sequence[int]], kind: str, initial: float, frozen: Collection[int]
    ) -> None:
        group = _GROUPS[kind]
        self._keys: dict[str, dict[int, Key]] = {
            path: {k: (group(path), k) for k in own} for path, own in members.items()
        }
        self.initial = initial
        self._parameters = {
            key: nn.Parameter(torch.tensor(initial, dtype=torch.float64), requires_grad=key[1] not in frozen)
            for own in self._keys.values()
            for key in own.values()
        }
        self._reached: set[Key] = set()

    @property
    def learned(self) -> list[nn.Parameter]:
        """The coefficients that are variables."""
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    @property
    def unreached(self) -> list[str]:
        """The modules with variable coefficients of which no gradient has reached one so far."""
        return [
            path
            for path, own in self._keys.items()
            if (variable := [key for key in own.values() if self._parameters[key].requires_grad])
            and not self._reached.intersection(variable)
        ]

    @property
    def reached(self) -> bool:
        """Whether any gradient has reached a coefficient."""
        return bool(self._reached)

    def note_reached(self) -> None:
        """Take note of which coefficients have a gradient now."""
        self._reached |= {key for key, one in self._parameters.items() if one.grad is not None}

    def scales(self, count: int) -> dict[str, torch.Tensor]:
        """Return λ [K] of each module, functions of the parameters; 0 for adapters that do not change it."""
        zero = torch.zeros((), dtype=torch.float64)
        return {
            path: torch.stack([self._parameters[own[k]] if k in own else zero for k in range(count)])
            for path, own in self._keys.items()
        }

    def distance(self) -> torch.Tensor:
        """Return the mean of (λ − λ_init)² over the coefficients that a gradient has reached."""
        own: list[torch.Tensor] = [
            parameter for key, parameter in self._parameters.items() if key in self._reached
        ]
        return (torch.stack(own) - self.initial).square().mean() if own else torch.zeros(())

    @torch.no_grad()
    def clamp_(self, low: float, high: float) -> None:
        for parameter in self.learned:
            parameter.clamp_(low, high)

    def values(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the numbers, by module and by the adapter's name."""
        return {
            path: {names[k]: self._parameters[key].item() for k, key in own.items()}
            for path, own in self._keys.items()
        }
