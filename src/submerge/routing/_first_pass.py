"""The first pass of a model: inputs of its maps are looked at, and the pass ends after the last of them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from submerge.errors import Problem, RequestError, few
from submerge.gating import Observer, StopForward, cut, is_same, observe, reordered
from submerge.methods.mass import RoutingSettings
from submerge.routing._choose import log_evidence
from submerge.routing._reference import REFERENCE_INPUTS, RouterReference, reference_inputs
from submerge.routing._scores import SiteScore, TokenPooling, site_score
from submerge.routing._sites import Site, choose_sites, discover_sites, read_by_input
from submerge.routing._updates import TaskUpdates

if TYPE_CHECKING:
    from submerge.routing._replay import Replay

__all__ = ["Evidence", "FirstPass"]

_NOT_ROUTED = ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "past_key_values")


@dataclass(frozen=True)
class Evidence:
    """What a first pass shows: for each site the score [B, T] of each map that takes it in, and `heads`.

    Scores are smaller the better a task fits. `heads` [B, T] is the head evidence, in nats, where it counts.
    `inputs` [B, n] are pooled inputs themselves, by the numbers of the sites that were asked for.
    """

    sites: list[list[torch.Tensor]]
    heads: torch.Tensor | None
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)


class _SiteReader(Observer):
    """Scores inputs at the chosen sites, and ends an `early` pass after the last; `names` ran until then.

    Scores count from `levels` [T], by map, where there are any. Pooled inputs of the sites with numbers
    in `gathered` are held.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        scores: Mapping[str, SiteScore],
        pooling: TokenPooling,
        levels: Mapping[str, torch.Tensor],
        *,
        gathered: Collection[int],
        early: bool,
    ) -> None:
        self._place = {name: i for i, site in enumerate(sites) for name in site.maps}
        self._left = set(self._place)
        self._scores, self._pooling, self._early = scores, pooling, early
        self._levels, self._gathered = levels, gathered
        self._last: torch.Tensor | None = None
        self._pooled: torch.Tensor | None = None
        self.inputs: dict[int, torch.Tensor] = {}
        self.found: dict[str, torch.Tensor] = {}
        self._sites = sites
        self.names: set[str] = set()

    @property
    def sites(self) -> list[list[torch.Tensor]]:
        """The scores [B, T] of each site's maps."""
        return [[self.found[name] for name in site.maps if name in self.found] for site in self._sites]

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        self.names.add(name)
        if name not in self._left:
            return
        if self._last is None or not is_same(self._last, x):  # pooled once for all maps of a site
            self._last, self._pooled = x, self._pooling(x)
        assert self._pooled is not None
        score = self._scores[name](self._pooled)
        self.found[name] = score - self._levels[name].to(score) if name in self._levels else score
        if (number := self._place[name]) in self._gathered and number not in self.inputs:
            self.inputs[number] = self._pooling.of_input(x)
        self._left.discard(name)
        if self._early and not self._left:
            raise StopForward


class FirstPass:
    """Runs a model on inputs without the tasks' updates, and returns what it shows of their tasks.

    The model's sites are found at its first batch. `replay` is there where the blocks that are looked at are
    those of the second pass, too. `reference` is the level of scores by inputs of the tasks, if it
    counts.
    """

    def __init__(
        self,
        updates: TaskUpdates,
        settings: RoutingSettings,
        count: int,
        reference: RouterReference | None = None,
    ) -> None:
        self.updates, self.settings, self.count, self.reference = updates, settings, count, reference
        self.sites: list[Site] = []
        self.replay: Replay | None = None
        self._scores: dict[str, SiteScore] = {}
        self._levels: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def evidence(
        self, model: Any, inputs: Mapping[str, Any], size: int, gathered: Collection[int] = ()
    ) -> Evidence:
        """Return what a pass over `size` inputs shows, and the inputs of the sites with these numbers."""
        self.find_sites(model, inputs, size)
        part, own = _first_part(model, inputs)
        widths = self._head_widths(model)
        reader = self._reader(inputs, size, gathered, early=self.replay is None and widths is None)
        observed = _modules(model, self.replay.gated if self.replay else self._scores)
        recording = self.replay.recording() if self.replay else nullcontext()
        logits = None
        with self.updates.left_out(every_head=widths is not None), observe(observed, reader), recording:
            if widths is None:
                part(**own)
            else:
                logits = model(**_for_logits(inputs)).logits
        if self.replay:
            self.replay.shared = frozenset(reader.names)
        if widths is None or logits is None or logits.ndim != 2:  # tags, spans: not one answer an input
            return Evidence(reader.sites, None, reader.inputs)
        return Evidence(reader.sites, log_evidence(logits, widths), reader.inputs)

    def find_sites(self, model: Any, inputs: Mapping[str, Any], size: int) -> None:
        """Find the sites of the model, unless they are known, by running the first of `size` inputs."""
        if not self.sites:
            part, own = _first_part(model, inputs)
            one, two = cut(own, slice(0, 1), size), reordered(own, torch.tensor([0, 0]), size)
            self._look_around(model, part, one, two)

    def _reader(
        self, inputs: Mapping[str, Any], size: int, gathered: Collection[int], *, early: bool
    ) -> _SiteReader:
        mask = inputs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        pooling = TokenPooling(self.settings.pooling, size, mask)
        return _SiteReader(self.sites, self._scores, pooling, self._levels, gathered=gathered, early=early)

    def _look_around(self, model: Any, part: Any, one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
        """Find the sites that are looked at, and make ready what is asked there.

        It takes a run of one input, and one of it twice: what a map is given of both is twice as much, or it
        is not of inputs, as the relative positions of DeBERTa.
        """
        factors = self.updates.factors
        maps = _modules(model, factors)
        with self.updates.left_out():
            of_inputs = read_by_input(maps, lambda: part(**one), lambda: part(**two))
            sites = discover_sites(of_inputs, lambda: part(**one))
        stacks = {site.stack for site in sites}
        counts = {stack: len(list(model.get_submodule(stack).children())) for stack in stacks}
        self.sites = choose_sites(sites, self.settings, counts)
        if self.settings.one_pass:
            self.replay = self.updates.replay(_blocks(model, self.sites))
        score, norm = self.settings.score, self.settings.norm
        names = [name for site in self.sites for name in site.maps]
        for name in names:
            self._scores[name] = site_score(factors[name], self.count, score, norm)
        if self.reference is not None:
            self._levels = _by_name(names, self.reference)
        elif self.settings.reference:
            self._levels = self._mean_scores(model, reference_inputs(model, one))

    def _mean_scores(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the mean scores [T] of inputs, by the maps that they reach."""
        if not inputs:
            return {}
        part, own = _first_part(model, inputs)
        reader = self._reader(inputs, REFERENCE_INPUTS, (), early=True)
        with self.updates.left_out(), observe(_modules(model, self._scores), reader):
            part(**own)
        return {name: score.mean(0) for name, score in reader.found.items()}

    def _head_widths(self, model: Any) -> Sequence[int] | None:
        """Return the widths of the tasks' heads where these are evidence: on an encoder's output."""
        widths = self.updates.head_widths
        if not self.settings.head_evidence or widths is None or self.replay is not None:
            return None
        return None if model.can_generate() or model.config.is_encoder_decoder else widths


def _by_name(names: Sequence[str], reference: RouterReference) -> dict[str, torch.Tensor]:
    """Return a reference's levels [T] by the maps, in the order in which they were when it was made."""
    if len(names) != len(reference.levels):
        what = f"the reference is of {len(reference.levels)} maps, and {len(names)} are looked at"
        raise RequestError(Problem(what, "calibration", "calibrate the folder again"))
    return dict(zip(names, reference.levels, strict=True))


def _modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def _blocks(model: nn.Module, sites: Sequence[Site]) -> list[nn.Module]:
    """Return the model's blocks up to the last that is looked at."""
    stacks = {site.stack for site in sites}
    if len(stacks) > 1:
        what = f"passes: one needs one stack of layers to look at, and there are {few(sorted(stacks))}"
        raise RequestError(
            Problem(what, "submerge.json", "name one with routing_layers, or take passes: two")
        )
    (stack,) = stacks
    return [model.get_submodule(f"{stack}.{i}") for i in range(max(site.layer for site in sites) + 1)]


def _first_part(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the part of the model that is looked at, an encoder where there is one, and what it takes."""
    part = model.base_model
    if getattr(model.config, "is_encoder_decoder", False):
        part = part.get_encoder()
    takes = inspect.signature(part.forward).parameters
    own = {k: v for k, v in inputs.items() if k in takes and k not in _NOT_ROUTED}
    if "use_cache" in takes:
        own["use_cache"] = False
    return part, own


def _for_logits(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model takes to give its logits and nothing else."""
    return {k: v for k, v in inputs.items() if k not in (*_NOT_ROUTED, "labels")}
