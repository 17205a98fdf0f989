"""The router of a model: the first pass, the choice of tasks, and the order in which samples run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from submerge.errors import Problem, RequestError, few
from submerge.gating._batch import cut, reordered
from submerge.gating._branches import Heads
from submerge.gating._gate import Gate, Span
from submerge.gating._updates import Factors
from submerge.routing._choose import NATS, choose, grouped, pooled, weighed, zscores
from submerge.routing._replay import Replay
from submerge.routing._scores import Evidence, Pool, evidence
from submerge.routing._sites import Done, Explorer, Probe, Reader, Site, choose_sites
from submerge.serving._attach import Attached

__all__ = ["FORMS", "Plan", "Router", "Routing"]

FORMS = ("any", "single", "pair")
_NOT_ROUTED = ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "past_key_values")


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


@dataclass(frozen=True)
class Plan:
    """A batch in the order in which it runs: `order` [B] sorts it, `inverse` undoes that; None: as it is."""

    spans: tuple[Span, ...]
    leads: tuple[Span, ...]
    order: torch.Tensor | None
    inverse: torch.Tensor | None

    def sorted(self, values: Any, rows: int) -> Any:
        """Return inputs in the order of the plan."""
        return values if self.order is None else reordered(values, self.order, rows)

    def restored(self, values: Any, rows: int) -> Any:
        """Return outputs in the order of the inputs; each sample may have several rows, together."""
        if self.inverse is None:
            return values
        each = torch.arange(rows // len(self.inverse))
        order = (self.inverse.unsqueeze(1) * len(each) + each).flatten()
        return reordered(values, order, rows)


class Router:
    """Finds the tasks of inputs, by what a first pass of the model shows; knows no model by itself.

    `tasks` are what the folder tells of each: its `name`, and how its head is used.
    """

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        gate: Gate,
        attached: Attached,
    ) -> None:
        self.tasks, self.settings, self.gate, self.attached = tuple(tasks), dict(settings), gate, attached
        self.names: tuple[str, ...] = tuple(task["name"] for task in tasks)
        self.sites: list[Site] = []
        self.replay: Replay | None = None
        self._evidence: dict[str, Evidence] = {}

    # --- what the caller says ---------------------------------------------------------------------------

    def number(self, task: str) -> int:
        """Return a task's number; raise `RequestError` for one that is not there."""
        if task not in self.names:
            raise RequestError(
                Problem(f"there is no task {task!r}", "task", f"there are {few(self.names, 20)}")
            )
        return self.names.index(task)

    def groups(self, group: Any, size: int, device: torch.device) -> torch.Tensor | None:
        """Return the group of each sample, from ids or "batch"; None where each stands for itself."""
        if group is None and self.settings["batch"] == "batch":
            group = "batch"
        if group is None:
            return None
        ids = [0] * size if isinstance(group, str) and group == "batch" else list(group)
        if len(ids) != size:
            what = f"group names {len(ids)} inputs, and there are {size}"
            raise RequestError(Problem(what, "group", 'give one id for each input, or "batch"'))
        return grouped([i.item() if isinstance(i, torch.Tensor) else i for i in ids], device)

    def allowed(self, form: Any, inputs: Mapping[str, Any], size: int) -> torch.Tensor | None:
        """Return which tasks take each sample [B, T], by its form; None where that leaves none out."""
        takes = self.settings["form"]
        if all(one == "any" for one in takes):
            return None
        forms = _forms(form, inputs, size)
        fits = [[f == "any" or t in ("any", f) for t in takes] for f in forms]
        if nobody := next((f for f, row in zip(forms, fits, strict=True) if not any(row)), None):
            raise RequestError(
                Problem(f"no task takes inputs of the form {nobody}", "form", "check the inputs")
            )
        return torch.tensor(fits)

    def prior(self, given: Any, size: int) -> torch.Tensor:
        """Return what the caller knows of the tasks [B, T], checked."""
        shape = (size, len(self.names))
        if not isinstance(given, torch.Tensor) or tuple(given.shape) != shape:
            found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            what = f"prior is {found}, and must be numbers of shape {list(shape)}"
            raise RequestError(Problem(what, "prior", "give each input a log-probability of every task"))
        if not given.amax(1).isfinite().all():  # NaN, +inf, or −inf for every task
            what = "prior leaves an input no task, or is no number"
            raise RequestError(Problem(what, "prior", "use −inf for tasks that are ruled out, and no others"))
        if self.settings["select"] == "weighted":
            raise RequestError(Problem("prior does not go with select: weighted", "prior", "use top1"))
        return given.detach()

    # --- routing ----------------------------------------------------------------------------------------

    def route(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        size: int,
        *,
        task: Any = None,
        group: Any = None,
        form: Any = None,
        prior: torch.Tensor | None = None,
        details: bool = False,
    ) -> Routing:
        """Return the choice for each sample; nothing is run where there is nothing to choose."""
        count = len(self.names)
        device = _device(inputs)
        if task is not None or count == 1:
            wanted = [task] * size if isinstance(task, str) else list(task or [self.names[0]] * size)
            if len(wanted) != size:
                what = f"task names {len(wanted)} inputs, and there are {size}"
                raise RequestError(Problem(what, "task", "give one name, or one for each input"))
            lead = torch.tensor([self.number(one) for one in wanted], device=device)
            shares = torch.nn.functional.one_hot(lead, count).double()
            return self._routing([(t,) for t in lead.tolist()], lead, shares, shares)
        groups, allowed = self.groups(group, size, device), self.allowed(form, inputs, size)
        others = [] if prior is None else [self.prior(prior, size)]
        found, heard = self.evidence(model, inputs, size)
        weighted = self.settings["select"] == "weighted"
        sites = [[r] for site in found for r in site] if self.settings["score"] == "leading" else found
        if self.settings["group_mean"] == "residuals":
            sites = [[pooled(r, groups) for r in site] for site in sites]
        each = [torch.stack([-r if weighted else zscores(r) for r in site]).mean(0) for site in sites]
        others += [] if heard is None else [heard]
        scores = weighed(torch.stack(each).mean(0), others, NATS[self.settings["score"]])
        scores = pooled(scores, groups)
        choice = choose(
            scores,
            select=self.settings["select"],
            threshold=self.settings["threshold"],
            most=self.settings["max_tasks"],
            temperature=self.settings["temperature"],
            allowed=None if allowed is None else allowed.to(scores.device),
        )
        routing = self._routing(choice.tasks, choice.lead, choice.coefficients, scores)
        if not details:
            return routing
        residuals = torch.stack([torch.stack(site).mean(0) for site in found])
        named = tuple(site.maps[0] for site in self.sites)
        return Routing(**{**vars(routing), "residuals": residuals, "sites": named})

    def _routing(
        self, tasks: Sequence[tuple[int, ...]], lead: torch.Tensor, shares: torch.Tensor, scores: torch.Tensor
    ) -> Routing:
        chosen = [tuple(self.names[t] for t in some) for some in tasks]
        return Routing(self.names, [self.names[t] for t in lead.tolist()], chosen, lead, shares, scores)

    @torch.no_grad()
    def evidence(
        self, model: Any, inputs: Mapping[str, Any], size: int
    ) -> tuple[list[list[torch.Tensor]], torch.Tensor | None]:
        """Return what the first pass shows.

        That is, for each site and each map that takes it in, how ill each task fits each sample [B, T]; and
        what the heads say [B, T], in nats, where they are heard.
        """
        part, some = _first_part(model, inputs)
        if not self.sites:
            self._look_around(model, part, cut(some, slice(0, 1), size))
        mask = inputs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        heads, heard = self._heads(model), None
        early = self.replay is None and heads is None
        reader = Reader(self.sites, self._evidence, Pool(self.settings["pooling"], size, mask), early=early)
        with self._first_pass(reader), self.replay.recording() if self.replay else nullcontext():
            if heads is None:
                part(**some)
            else:
                with heads.asked():
                    logits = model(**_plain(inputs)).logits
                heard = heads.log_evidence(logits) if logits.ndim == 2 else None
        if self.replay:
            self.gate.shared = frozenset(reader.met)
        return reader.found, heard

    def _look_around(self, model: Any, part: Any, one: Mapping[str, Any]) -> None:
        """Find the sites that are looked at, by running one input, and make ready what is asked there."""
        explorer = Explorer()
        with self._first_pass(explorer):
            part(**one)
        layers, which = self.settings["routing_layers"], self.settings["routing_sites"]
        once = self.settings["passes"] == "one"
        if once and layers == "auto":
            layers = f"first:{max(1, round((1 + max(s.layer for s in explorer.sites)) / 3))}"
        stacks = {site.stack for site in explorer.sites}
        counts = {stack: len(list(model.get_submodule(stack).children())) for stack in stacks}
        self.sites = choose_sites(explorer.sites, layers, which, counts)
        if once:
            self.replay = Replay(_blocks(model, self.sites))
        for name in (name for site in self.sites for name in site.maps):
            weight = self.attached.layers[name].kept["weight"]
            assert isinstance(weight, Factors)
            score, norm = self.settings["score"], self.settings["norm"]
            self._evidence[name] = evidence(weight, len(self.names), score, norm)

    def _heads(self, model: Any) -> Heads | None:
        """Return the tasks' heads where they are heard: those on an encoder's output, if it comes to that."""
        heads, settings = self.attached.heads, self.settings
        if settings["head_evidence"] == "none" or settings["select"] == "weighted":
            return None
        if self.replay is not None or model.can_generate() or model.config.is_encoder_decoder:
            return None
        return heads if heads is not None and heads.alone else None

    @contextmanager
    def _first_pass(self, probe: Probe) -> Iterator[None]:
        with self.gate.probing(probe):
            try:
                yield
            except Done:
                return

    # --- running ----------------------------------------------------------------------------------------

    def replaying(self, plan: Plan, size: int, *, whole: bool = False) -> AbstractContextManager[None]:
        """Let the first blocks be those of the first pass inside; with `whole` they are run again."""
        if self.replay is None:
            return nullcontext()
        return self.replay.playing(self.gate, plan.order, size, whole=whole)

    def plan(self, routing: Routing) -> Plan:
        """Return the order in which samples run: those with one set of tasks together, large sets first."""
        sets = [tuple(self.names.index(name) for name in some) for some in routing.selected]
        leads = routing.lead.tolist()
        counts = {one: sets.count(one) for one in set(sets)}
        keys = [(-counts[one], one, lead) for one, lead in zip(sets, leads, strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        spans, own = _runs([sets[i] for i in order]), _runs([(leads[i],) for i in order])
        if order == sorted(order):
            return Plan(spans, own, None, None)
        arranged = torch.tensor(order)
        return Plan(spans, own, arranged, arranged.argsort())

    @contextmanager
    def window(self, at: slice) -> Iterator[None]:
        """Say that only these samples of the plan run inside."""
        if self.replay is not None:
            self.replay.window = at
        try:
            yield
        finally:
            if self.replay is not None:
                self.replay.window = None


def _runs(keys: Sequence[tuple[int, ...]]) -> tuple[Span, ...]:
    """Return a span for each run of equal keys."""
    found: list[Span] = []
    for place, key in enumerate(keys):
        if found and found[-1].tasks == key:
            found[-1] = Span(key, found[-1].start, place + 1)
        else:
            found.append(Span(key, place, place + 1))
    return tuple(found)


def _device(inputs: Mapping[str, Any]) -> torch.device:
    return next((x.device for x in inputs.values() if isinstance(x, torch.Tensor)), torch.device("cpu"))


def _blocks(model: torch.nn.Module, sites: Sequence[Site]) -> list[torch.nn.Module]:
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
    some = {k: v for k, v in inputs.items() if k in takes and k not in _NOT_ROUTED}
    if "use_cache" in takes:
        some["use_cache"] = False
    return part, some


def _plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model takes to give its logits and nothing else."""
    return {k: v for k, v in inputs.items() if k not in (*_NOT_ROUTED, "labels")}


def _forms(form: Any, inputs: Mapping[str, Any], size: int) -> list[str]:
    """Return each sample's form: as told, or by the second segment's token types."""
    if form is None:
        types = inputs.get("token_type_ids")
        if not isinstance(types, torch.Tensor):
            return ["any"] * size
        return ["pair" if pair else "single" for pair in (types > 0).any(-1).tolist()]
    forms = [form] * size if isinstance(form, str) else list(form)
    wrong = [one for one in forms if one not in FORMS]
    if wrong or len(forms) != size:
        what = f"form is {wrong[0]!r}" if wrong else f"form names {len(forms)} inputs, and there are {size}"
        raise RequestError(Problem(what, "form", f"one of {', '.join(FORMS)}, or one for each input"))
    return forms
