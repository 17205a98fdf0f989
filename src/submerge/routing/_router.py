"""The router of a model: from what a first pass shows to the tasks of each input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from submerge.methods.mass import RoutingSettings
from submerge.routing._calibration import RouterCalibration
from submerge.routing._choose import choose, combined, group_means, joint_zscores, zscores
from submerge.routing._first_pass import Evidence, FirstPass
from submerge.routing._reference import RouterReference
from submerge.routing._request import RoutingRequest
from submerge.routing._sites import Site
from submerge.routing._updates import TaskUpdates

if TYPE_CHECKING:
    from submerge.routing._replay import Replay

__all__ = ["Router", "Routing"]


@dataclass(frozen=True)
class Routing:
    """What was chosen for each sample of a batch.

    `tasks` are the names of the tasks whose heads answer, `selected` those whose updates run; `coefficients`
    [B, T] are the tasks' shares and `scores` [B, T] what they come from, in the order of `names`. `residuals`
    [sites, B, T] is the evidence at each site, if it was asked for.
    """

    names: tuple[str, ...]
    tasks: list[str]
    selected: list[tuple[str, ...]]
    lead: torch.Tensor
    coefficients: torch.Tensor
    scores: torch.Tensor
    residuals: torch.Tensor | None = None
    sites: tuple[str, ...] = ()

    def led_by(self, lead: torch.Tensor) -> Routing:
        """Return the routing with other tasks [B] whose heads answer."""
        return replace(self, tasks=[self.names[t] for t in lead.tolist()], lead=lead)


class Router:
    """Finds the tasks of inputs, by what a first pass of the model shows; knows no model by itself.

    `tasks` are what the folder tells of each: its `name`, and how its head is used. `settings` are the gate's
    by their names in recipes, and `rules` what they mean for the model. `updates` are the tasks' in the
    model, `calibration` is what inputs of the tasks showed, and `reference` the level of scores by inputs of
    any of them, if it counts.
    """

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        rules: RoutingSettings,
        updates: TaskUpdates,
        calibration: RouterCalibration | None = None,
        reference: RouterReference | None = None,
    ) -> None:
        self.calibration = calibration
        self.tasks, self.settings, self.rules, self.updates = tuple(tasks), dict(settings), rules, updates
        self.names: tuple[str, ...] = tuple(task["name"] for task in tasks)
        self.first_pass = FirstPass(updates, rules, len(self.names), reference)

    @property
    def sites(self) -> list[Site]:
        """The sites that are looked at; none before the first batch."""
        return self.first_pass.sites

    @property
    def replay(self) -> Replay | None:
        """What is recorded of the first pass, where its blocks are those of the second, too."""
        return self.first_pass.replay

    def route(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        size: int,
        request: RoutingRequest,
        *,
        details: bool = False,
    ) -> Routing:
        """Return the choice for each sample; nothing is run where there is nothing to choose."""
        device, rules = _device(inputs), self.rules
        if (tasks := request.tasks(self.names, size)) is not None:
            lead = torch.tensor(tasks, device=device)
            shares = torch.nn.functional.one_hot(lead, len(self.names)).double()
            return self._routing([(t,) for t in tasks], lead, shares, shares)
        groups = request.groups(size, device, batch_is_group=rules.batch_is_group)
        allowed = request.allowed(rules.forms, inputs, size)
        prior = request.log_prior(size, len(self.names), standardised=rules.standardised)
        gathered = self.calibration.sites if self.calibration else ()
        evidence = self.first_pass.evidence(model, inputs, size, gathered)
        scores = self.scores(evidence, groups, prior)
        choice = choose(
            scores,
            select=rules.select,
            threshold=rules.threshold,
            most=rules.max_tasks,
            temperature=rules.temperature,
            allowed=None if allowed is None else allowed.to(scores.device),
        )
        routing = self._routing(choice.tasks, choice.lead, choice.coefficients, scores)
        return self._detailed(routing, evidence) if details else routing

    def scores(
        self, evidence: Evidence, groups: torch.Tensor | None, prior: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the scores [B, T] of all evidence, the larger the better a task fits.

        S is the mean over the sites of z-scores of −r, each the mean over the maps that take the site in (of
        null-space ratios it is the mean over all maps, with one deviation); it is then combined with other
        evidence and averaged over the groups,

            scores = mean_group(c Var_t(S) S + log p(heads) + log prior)

        or, by the setting of the authors' code, the residuals r are averaged before. With a calibration its
        scores stand for c Var_t(S) S + log p(heads).
        """
        others = [] if prior is None else [prior]
        if self.calibration is not None:
            heads = evidence.heads is not None and self.calibration.has_heads
            shown = evidence if heads else replace(evidence, heads=None)
            scores = self.calibration.scores(evidence.inputs, self.data_free(shown, groups), heads=heads)
            return group_means(sum(others, scores), groups)
        others += [] if evidence.heads is None else [evidence.heads]
        mean = self._mean_score(evidence, groups)
        return group_means(combined(mean, others, self.rules.score.agreement_weight), groups)

    def data_free(self, evidence: Evidence, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Return the scores in nats [B, T] that need no data: c Var_t(S) S + log p(heads)."""
        mean = self._mean_score(evidence, groups)
        heads = torch.zeros_like(mean) if evidence.heads is None else evidence.heads
        return combined(mean, [heads], self.rules.score.agreement_weight)

    def _mean_score(self, evidence: Evidence, groups: torch.Tensor | None) -> torch.Tensor:
        """Return S [B, T], the mean over the sites of what their maps say."""
        rules = self.rules
        terms = [[r] for site in evidence.sites for r in site] if rules.score.per_map else evidence.sites
        if rules.mean_of_residuals:
            terms = [[group_means(r, groups) for r in term] for term in terms]
        if rules.standardised and rules.score.one_scale:
            return joint_zscores(torch.stack([r for term in terms for r in term])).mean(0)
        standardise = zscores if rules.standardised else torch.neg
        return torch.stack([torch.stack([standardise(r) for r in term]).mean(0) for term in terms]).mean(0)

    def _routing(
        self, tasks: Sequence[tuple[int, ...]], lead: torch.Tensor, shares: torch.Tensor, scores: torch.Tensor
    ) -> Routing:
        selected = [tuple(self.names[t] for t in one) for one in tasks]
        return Routing(self.names, [self.names[t] for t in lead.tolist()], selected, lead, shares, scores)

    def _detailed(self, routing: Routing, evidence: Evidence) -> Routing:
        """Return the routing with the evidence at each site, named by the first map that takes it in."""
        residuals = torch.stack([torch.stack(site).mean(0) for site in evidence.sites])
        return replace(routing, residuals=residuals, sites=tuple(site.maps[0] for site in self.sites))


def _device(inputs: Mapping[str, Any]) -> torch.device:
    return next((x.device for x in inputs.values() if isinstance(x, torch.Tensor)), torch.device("cpu"))
