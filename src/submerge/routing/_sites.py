"""The sites of a model: activations that one or several linear maps take in.

Query, key and value maps of a block have one site, its output map another, and so on. Sites are told apart by
being other tensors, not by names, so that any architecture has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from submerge.errors import Problem, RequestError
from submerge.gating import Observer, is_same, observe
from submerge.methods.mass import POSITIONS, RoutingSettings
from submerge.names import layer_of

__all__ = ["Site", "choose_sites", "discover_sites", "read_by_input"]


@dataclass
class Site:
    """One activation: its layer's stack and number, its place among the layer's sites, who takes it."""

    stack: str
    layer: int
    position: int
    maps: list[str] = field(default_factory=list)


class _SiteFinder(Observer):
    """Finds the sites of a model, in the order in which they are met."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self._last: torch.Tensor | None = None  # held, so that no other tensor takes its place in memory

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        place = layer_of(name)
        if place is None or not x.is_floating_point():
            return
        if self._last is not None and is_same(self._last, x):
            self.sites[-1].maps.append(name)
            return
        self._last = x
        position = sum((s.stack, s.layer) == place for s in self.sites)
        self.sites.append(Site(*place, position, [name]))


def discover_sites(maps: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[Site]:
    """Return the sites that linear maps take in while `run` runs their model, in the order of the pass."""
    finder = _SiteFinder()
    with observe(maps, finder):
        run()
    return finder.sites


class _Counter(Observer):
    """Counts the elements that modules take in."""

    def __init__(self) -> None:
        self.elements: dict[str, int] = {}

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        self.elements[name] = self.elements.get(name, 0) + x.numel()


def read_by_input(
    maps: Mapping[str, nn.Module], run_one: Callable[[], Any], run_two: Callable[[], Any]
) -> dict[str, nn.Module]:
    """Return the maps that are given as much again where a model is run on one input and on two."""
    counts = []
    for run in (run_one, run_two):
        counter = _Counter()
        with observe(maps, counter):
            run()
        counts.append(counter.elements)
    one, two = counts
    return {name: module for name, module in maps.items() if name in one and two.get(name) == 2 * one[name]}


def choose_sites(sites: Sequence[Site], settings: RoutingSettings, counts: Mapping[str, int]) -> list[Site]:
    """Return the sites that the settings name, where each stack has so many layers.

    Raises `RequestError` where that is none.
    """
    rule = settings.layer_rule(1 + max((site.layer for site in sites), default=0))
    chosen = [s for s in sites if rule.accepts(s.stack, s.layer, counts[s.stack], s.maps)]
    if settings.positions != "all":
        _check_blocks(sites, chosen, settings.positions)
        chosen = [
            site
            for site in chosen
            if POSITIONS[site.position] == settings.position(site.stack, counts[site.stack])
        ]
    if not chosen:
        named = f"routing_layers {rule.text!r}, routing_sites {settings.positions!r}"
        what = f"no input of the model is named by {named}"
        raise RequestError(Problem(what, "submerge.json", "use routing_layers: all"))
    return chosen


def _check_blocks(sites: Sequence[Site], chosen: Sequence[Site], positions: str) -> None:
    """Raise `RequestError` where a layer with chosen sites has not the four sites that have names."""
    layers = {(site.stack, site.layer) for site in chosen}
    counts = {sum((s.stack, s.layer) == layer for s in sites) for layer in layers}
    if counts - {len(POSITIONS)}:
        what = f"routing_sites is {positions}, but a layer has {sorted(counts)} sites, not 4"
        hint = "use routing_sites: all, and name modules with routing_layers"
        raise RequestError(Problem(what, "submerge.json", hint))
