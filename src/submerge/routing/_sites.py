"""The first pass: inputs of layers are looked at, and the model is left as soon as the last one was seen.

A site is an activation that one or several linear maps take in: query, key and value maps of a block have
one, its output map another, and so on. Sites are told apart by being other tensors, not by names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from submerge.errors import Problem, RequestError
from submerge.methods.mass import layer_numbers, paper_site
from submerge.routing._scores import Evidence
from submerge.store import layer_of

if TYPE_CHECKING:
    from submerge.gating._updates import GatedLayer

__all__ = ["Done", "Explorer", "Probe", "Reader", "Site", "choose_sites"]

POSITIONS = ("attention", "attention_out", "mlp", "mlp_out")
"""The four sites of a transformer's block, in the order in which they are met."""


class Done(Exception):  # noqa: N818 — it is no error
    """All that the router looks at was seen."""


@dataclass
class Site:
    """One activation: its layer's stack and number, its place among the layer's sites, who takes it."""

    stack: str
    layer: int
    position: int
    maps: list[str] = field(default_factory=list)


class Probe(ABC):
    """What looks at the inputs of gated linear maps."""

    @abstractmethod
    def see(self, layer: GatedLayer, x: torch.Tensor) -> None:
        """Take note of an input of a layer."""


class Explorer(Probe):
    """Finds the sites of a model, in the order in which they are met."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self._last: torch.Tensor | None = None  # held, so that no other tensor takes its place in memory

    def see(self, layer: GatedLayer, x: torch.Tensor) -> None:
        place = layer_of(layer.name)
        if not layer.routes or place is None or not x.is_floating_point():
            return
        stack, number = place
        if self._last is not None and same(self._last, x) and self.sites:
            self.sites[-1].maps.append(layer.name)
            return
        self._last = x
        position = sum((s.stack, s.layer) == place for s in self.sites)
        self.sites.append(Site(stack, number, position, [layer.name]))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors are the same values in the same place."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


class Reader(Probe):
    """Reads the evidence for each task at the chosen sites, and ends an `early` pass after the last.

    `met` are the layers that ran.
    """

    def __init__(
        self, sites: Sequence[Site], evidence: Mapping[str, Evidence], pool: Any, *, early: bool = True
    ) -> None:
        self._place = {name: i for i, site in enumerate(sites) for name in site.maps}
        self._left = set(self._place)
        self._evidence, self._pool, self._early = evidence, pool, early
        self._last: torch.Tensor | None = None
        self._pooled: torch.Tensor | None = None
        self.found: list[list[torch.Tensor]] = [[] for _ in sites]
        self.met: set[str] = set()

    def see(self, layer: GatedLayer, x: torch.Tensor) -> None:
        self.met.add(layer.name)
        if layer.name not in self._left:
            return
        if self._last is None or not same(self._last, x):
            self._last, self._pooled = x, self._pool(x)
        assert self._pooled is not None
        self.found[self._place[layer.name]].append(self._evidence[layer.name](self._pooled))
        self._left.discard(layer.name)
        if self._early and not self._left:
            raise Done


def choose_sites(sites: Sequence[Site], layers: str, which: str, counts: Mapping[str, int]) -> list[Site]:
    """Return the sites that the settings name, where each stack has so many layers.

    Raises `RequestError` where that is none.
    """
    chosen = [site for site in sites if _in_layers(site, layers, counts[site.stack])]
    if which != "all":
        each = {(s.stack, s.layer): 0 for s in chosen}
        for site in sites:
            if (site.stack, site.layer) in each:
                each[site.stack, site.layer] += 1
        if any(count != len(POSITIONS) for count in each.values()):
            what = f"routing_sites is {which}, but a layer has {sorted(set(each.values()))} sites, not 4"
            hint = "use routing_sites: all, and name modules with routing_layers"
            raise RequestError(Problem(what, "submerge.json", hint))
        chosen = [site for site in chosen if POSITIONS[site.position] == _wanted(site, which, counts)]
    if not chosen:
        what = f"no input of the model is named by routing_layers {layers!r}, routing_sites {which!r}"
        raise RequestError(Problem(what, "submerge.json", "use routing_layers: all"))
    return chosen


def _wanted(site: Site, which: str, counts: Mapping[str, int]) -> str:
    """Return the name of the position that the settings mean in a site's stack."""
    return paper_site(site.stack, counts[site.stack])[1] if which == "paper" else which


def _in_layers(site: Site, text: str, count: int) -> bool:
    name, _, number = text.partition(":")
    if text in ("auto", "all"):
        return True
    if text == "paper":
        return site.layer == paper_site(site.stack, count)[0]
    if name == "first":
        return site.layer < int(float(number))
    if name == "depth":
        return site.layer == int(float(number) * count)
    if (numbers := layer_numbers(text)) is not None:
        return site.layer in numbers
    return any(text in one for one in site.maps)
