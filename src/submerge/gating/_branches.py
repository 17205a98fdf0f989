"""Each task's own modules: its head, and what else no other task has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from submerge.errors import Problem, RequestError, few
from submerge.gating._batch import cut, joined
from submerge.gating._gate import Gate, Span
from submerge.routing._choose import heard

__all__ = ["Heads", "Own", "best_head", "own_modules"]


class Own(nn.Module):
    """A module whose parameters are each task's own; a sample gets those of its first task."""

    def __init__(self, gate: Gate, module: nn.Module, tasks: Sequence[Mapping[str, torch.Tensor]]) -> None:
        super().__init__()
        self.gate = gate
        self._plain = type(module).forward
        self._entered = False
        self._names: list[dict[str, str]] = []
        for number, parameters in enumerate(tasks):
            names = {}
            for place, (name, tensor) in enumerate(sorted(parameters.items())):
                self.register_buffer(f"task{number}_{place}", tensor, persistent=False)
                names[name] = f"task{number}_{place}"
            self._names.append(names)

    def parameters_of(self, task: int) -> dict[str, torch.Tensor]:
        """Return a task's parameters by name."""
        return {name: getattr(self, buffer) for name, buffer in self._names[task].items()}

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the module makes of its inputs, with each sample's own parameters."""
        if self._entered or not self.gate.spans:
            return self._plain(module, *args, **kwargs)
        return joined(
            [self.run(module, span.tasks[0], *self.inputs((args, kwargs), span)) for span in self.gate.leads]
        )

    def run(self, module: nn.Module, task: int, args: Any, kwargs: Any) -> Any:
        """Run the module with one task's parameters."""
        self._entered = True
        try:
            return functional_call(module, self.parameters_of(task), args, kwargs)
        finally:
            self._entered = False

    def inputs(self, values: Any, span: Span) -> Any:
        """Return the inputs of a span of samples."""
        rows = values[0][0].shape[0]
        each = rows // self.gate.size
        return cut(values, slice(span.start * each, span.stop * each), rows)


class Heads(Own):
    """The module that ends in the tasks' outputs: as wide as the widest, filled up with −inf.

    With `compete` the outputs of all tasks of a sample come side by side, −inf for the others, so that the
    best can be taken where they are final; in a first pass that asks `everyone`, so do those of all tasks.
    Heads that are one linear map are one product for all tasks. `alone` says that tasks have no other modules
    of their own, before this one.
    """

    index: torch.Tensor

    def __init__(
        self,
        gate: Gate,
        module: nn.Module,
        tasks: Sequence[Mapping[str, torch.Tensor]],
        *,
        compete: bool,
        alone: bool,
    ) -> None:
        super().__init__(gate, module, tasks)
        self.compete = compete
        self.everyone = False
        self.alone = alone
        self.linear = self._plain is nn.Linear.forward
        self.widths = [_width(parameters) for parameters in tasks]
        self.width = max(self.widths)
        starts = [sum(self.widths[:t]) for t in range(len(tasks))]
        rows = [
            [start + c if c < width else sum(self.widths) for c in range(self.width)]
            for start, width in zip(starts, self.widths, strict=True)
        ]  # one past the last output of all is −inf
        self.register_buffer("index", torch.tensor(rows), persistent=False)

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return [.., width], or [.., T · width] where heads compete or everyone is asked."""
        if self._entered or not (self.gate.spans or self.everyone):
            return self._plain(module, *args, **kwargs)
        everything = self._all(module, args, kwargs)  # [rows, .., Σ widths]
        rows = everything.shape[0]
        everything = F.pad(everything, (0, 1), value=-torch.inf)
        if self.everyone:
            return everything[..., self.index].flatten(-2)
        if self.compete:
            allowed = self._allowed(rows, everything.device)
            found = everything[..., self.index]
            shape = (rows, *[1] * (found.ndim - 3), len(self.widths), 1)
            return found.masked_fill(~allowed.view(shape), -torch.inf).flatten(-2)
        lead = self._spread([s.tasks[0] for s in self.gate.leads], self.gate.leads, rows)
        index = self.index[lead.to(self.index.device)]  # [rows, width]
        index = index.view(rows, *[1] * (everything.ndim - 2), self.width)
        return everything.gather(-1, index.expand(*everything.shape[:-1], self.width))

    def _all(self, module: nn.Module, args: Any, kwargs: Any) -> torch.Tensor:
        """Return the outputs of all tasks side by side; those that nobody asks for may be anything."""
        tasks = range(len(self.widths))
        if self.linear:
            found = [self.parameters_of(t) for t in tasks]
            weight = torch.cat([p["weight"] for p in found])
            bias = None
            if any("bias" in p for p in found):
                zeros = [weight.new_zeros(width) for width in self.widths]
                bias = torch.cat([p.get("bias", zero) for p, zero in zip(found, zeros, strict=True)])
            return F.linear(args[0] if args else next(iter(kwargs.values())), weight, bias)
        spans = self.gate.spans if self.compete else self.gate.leads
        wanted = set(tasks) if self.everyone else {t for span in spans for t in span.tasks}
        results: dict[int, torch.Tensor] = {t: self.run(module, t, args, kwargs) for t in sorted(wanted)}
        some = next(iter(results.values()))
        empty = [some.new_zeros(*some.shape[:-1], width) for width in self.widths]
        return torch.cat([results.get(t, empty[t]) for t in tasks], dim=-1)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Let the outputs of all tasks come side by side inside."""
        self.everyone = True
        try:
            yield
        finally:
            self.everyone = False

    def log_evidence(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log Σ exp of each task's outputs [B, T], in nats, for outputs [B, T · width] side by side.

        A task with one output, a number, says nothing of its inputs (`heard`).
        """
        found = logits.double().view(len(logits), len(self.widths), self.width).logsumexp(-1)
        classes = torch.tensor([width > 1 for width in self.widths], device=found.device)
        return heard(found, classes)

    def _allowed(self, rows: int, device: torch.device) -> torch.Tensor:
        found = torch.zeros(self.gate.size, len(self.widths), dtype=torch.bool, device=device)
        for span in self.gate.spans:
            found[span.start : span.stop, list(span.tasks)] = True
        return found.repeat_interleave(rows // self.gate.size, dim=0)

    def _spread(self, values: Sequence[int], spans: Sequence[Span], rows: int) -> torch.Tensor:
        each = rows // self.gate.size
        sizes = torch.tensor([span.size * each for span in spans])
        return torch.tensor(values).repeat_interleave(sizes)


def _width(parameters: Mapping[str, torch.Tensor]) -> int:
    """Return how many outputs a head has: the rows of its last weight."""
    weights = [p for p in parameters.values() if p.ndim > 1] or list(parameters.values())
    return weights[-1].shape[0]


def best_head(logits: torch.Tensor, count: int, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs [B, .., C] of the head with the largest (`max` or mean) output, and its task [B].

    For outputs [B, .., count · C] side by side with −inf where there is none.
    """
    found = logits.reshape(*logits.shape[:-1], count, -1)
    flat = found.movedim(-2, 1).flatten(2)  # [B, T, everything]
    if how == "max":
        score = flat.amax(-1)
    else:
        real = flat.isfinite()
        score = flat.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1)
        score = score.masked_fill(~real.any(-1), -torch.inf)
    task = score.argmax(-1)
    index = task.view(-1, *[1] * (found.ndim - 1)).expand(*found.shape[:-2], 1, found.shape[-1])
    return found.gather(-2, index).squeeze(-2), task


def own_modules(
    model: nn.Module, heads: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]
) -> list[str]:
    """Return the largest modules whose parameters are all the tasks' own, in the model's order.

    `heads` are the tasks' own parameters by the model's names. Raises `RequestError` where a task lacks one
    that another has.
    """
    wanted = {name for head in heads for name in head}
    for head, task in zip(heads, names, strict=True):
        if missing := sorted(wanted - head.keys()):
            what = f"the head of {task} lacks {few(missing)}, which another task's has"
            raise RequestError(Problem(what, "", "serve tasks with heads of one kind"))
    found: list[str] = []
    for path, module in model.named_modules():
        own = [f"{path}.{name}" for name, _ in module.named_parameters()]
        inner = any(path.startswith(outer + ".") for outer in found)
        if path and own and not inner and all(name in wanted for name in own):
            found.append(path)
    placed = {n for n in wanted if any(n.startswith(path + ".") for path in found)}
    if placed != wanted:
        what = f"{few(sorted(wanted - placed))} stand in modules that all tasks share"
        raise RequestError(Problem(what, "", "name only heads with 'head:'"))
    return found
