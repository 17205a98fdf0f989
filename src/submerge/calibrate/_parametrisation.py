"""Merge coefficients as parameters: which of them are one, and the scales that they make.

module    λ_k of each module                 the default, Σ_modules K numbers
type      λ_k of each kind of module         modules of one last name (q_proj, …) share it
adapter   λ_k                                K numbers
unit      λ_ki of each module and unit i     one for each row of A_k, Σ_modules Σ_k r_k numbers
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from submerge.gating import ConstantScales

__all__ = ["PARAMETRISATIONS", "Parametrisation"]

Key: TypeAlias = tuple[str, int]

_GROUPS: dict[str, Callable[[str], str]] = {
    "module": lambda path: path,
    "type": lambda path: path.rpartition(".")[2],
    "adapter": lambda _: "",
    "unit": lambda path: path,
}
PARAMETRISATIONS = tuple(_GROUPS)


class Parametrisation:
    """The coefficients of K adapters, one parameter for each group of modules and adapter that changes them.

    Each is a parameter of its own, in float64, so that an optimiser leaves out those that got no gradient:
    one that is given zeros for them would still let them decay.

    Args:
        units: by module, how many units of rank one each adapter that changes it has there.
        kind: which modules share a coefficient, and whether units have coefficients of their own.
        initial: the value of all of them.
        frozen: adapters whose coefficients are no variables.
    """

    def __init__(
        self, units: Mapping[str, Mapping[int, int]], kind: str, initial: float, frozen: Collection[int]
    ) -> None:
        group = _GROUPS[kind]
        self.initial, self._by_unit = initial, kind == "unit"
        self._keys: dict[str, dict[int, Key]] = {
            path: {k: (group(path), k) for k in sorted(own)} for path, own in units.items()
        }
        self._parameters: dict[Key, nn.Parameter] = {}
        for path, own in self._keys.items():
            for k, key in own.items():
                shape = (units[path][k],) if self._by_unit else ()
                values = torch.full(shape, initial, dtype=torch.float64)
                self._parameters[key] = nn.Parameter(values, requires_grad=k not in frozen)
        self._reached: set[Key] = set()

    @property
    def learned(self) -> list[nn.Parameter]:
        """The coefficients that are variables."""
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    @property
    def unreached(self) -> list[str]:
        """The modules with variable coefficients of which no gradient has reached one so far."""
        return [path for path, own in self._keys.items() if self._is_unreached(own.values())]

    def _is_unreached(self, keys: Collection[Key]) -> bool:
        variable = {key for key in keys if self._parameters[key].requires_grad}
        return bool(variable) and self._reached.isdisjoint(variable)

    @property
    def reached(self) -> bool:
        """Whether any gradient has reached a coefficient."""
        return bool(self._reached)

    def note_reached(self) -> None:
        """Take note of which coefficients have a gradient now."""
        self._reached |= {key for key, one in self._parameters.items() if one.grad is not None}

    def scales(self, count: int) -> ConstantScales:
        """Return λ [K] of each module, or λ [r_k] of each adapter's units, functions of the parameters.

        Of adapters that do not change a module λ is 0.
        """
        if self._by_unit:
            return {
                path: {k: self._parameters[key] for k, key in own.items()} for path, own in self._keys.items()
            }
        zero = torch.zeros((), dtype=torch.float64)
        return {
            path: torch.stack([self._parameters[own[k]] if k in own else zero for k in range(count)])
            for path, own in self._keys.items()
        }

    def distance(self) -> torch.Tensor:
        """Return the mean of (λ − λ_init)² over the coefficients that a gradient has reached."""
        own = [parameter.view(-1) for key, parameter in self._parameters.items() if key in self._reached]
        return (torch.cat(own) - self.initial).square().mean() if own else torch.zeros(())

    @torch.no_grad()
    def clamp_(self, low: float, high: float) -> None:
        for parameter in self.learned:
            parameter.clamp_(low, high)

    def values(self, names: Sequence[str]) -> dict[str, dict[str, float | list[float]]]:
        """Return the numbers, by module and by the adapter's name: a list where there are several units."""
        return {
            path: {names[k]: _plain(self._parameters[key]) for k, key in own.items()}
            for path, own in self._keys.items()
        }


def _plain(parameter: torch.Tensor) -> float | list[float]:
    if parameter.numel() == 1:
        return parameter.item()
    values: list[float] = parameter.tolist()
    return values
