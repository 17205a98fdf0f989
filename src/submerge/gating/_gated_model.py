"""A model whose modules are gated: where its parameters stand, and how a batch runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from submerge.gating._assignment import Assignment
from submerge.gating._batch import cut, joined
from submerge.gating._foreign_reads import RESIZING, reader_of
from submerge.gating._gate import Gate
from submerge.gating._gated_module import GatedModule
from submerge.gating._gated_update import GatedUpdate
from submerge.gating._heads import Heads
from submerge.gating._layout import UnsplitError
from submerge.gating._modules import gate_module
from submerge.gating._replaced import ReplacedParameter, replace_parameters

__all__ = ["GatedModel", "parameter_of", "parameter_places"]


class GatedModel:
    """The gated modules of a model by name, and the module that the members' outputs come from.

    `sequential` says that a gated parameter is used for all samples at once (as a table that is looked up by
    distance), so that a batch of several groups of samples must run group by group. `unordered` modules are
    why: the rows that they are given are not those of one sample after another. `replaced` are the parameters
    that a module around their own reads, another reason: they are replaced while a group runs. So are those
    that are `resized`, where a call asks for images of another size than the model's: tables of positions.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from submerge.gating import ConstantAssignment, Gate, GatedDense, GatedModel, Recent
        >>> model, gate = nn.Sequential(nn.Linear(2, 1)), Gate(Recent(0))
        >>> gated = GatedModel(gate)
        >>> gated.add(model, {"0": {"bias": GatedDense(gate, "0.bias", {0: torch.tensor([2.0])})}})
        >>> x = torch.ones(1, 2)
        >>> plain = model(x)
        >>> with gate.over(ConstantAssignment(torch.ones(1))):
        ...     round((model(x) - plain).item(), 4)
        2.0
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.modules: dict[str, GatedModule] = {}
        self.heads: Heads | None = None
        self.sequential = False
        self.unordered: frozenset[str] = frozenset()
        self.replaced: list[ReplacedParameter] = []
        self.resized: list[ReplacedParameter] = []

    def add(
        self, model: nn.Module, updates: Mapping[str, Mapping[str, GatedUpdate]], *, by_token: bool = False
    ) -> None:
        """Gate modules in place, by the updates of each module's own parameters.

        With `by_token` tokens of one sample have different members, so that no parameter can be replaced.
        """
        for path, own in updates.items():
            module = model.get_submodule(path)
            taken = [] if by_token else [name for name in own if reader_of(model, path, name) is not None]
            if taken:
                self.replaced += replace_parameters(module, path, {name: own[name] for name in taken})
                self.sequential = True
            if inside := {name: own[name] for name in own if name not in taken}:
                self.modules[path] = gate_module(self.gate, module, inside, path)
                if not by_token and any(reader_of(model, path, n, resizing=True) is not None for n in inside):
                    self.resized += [ReplacedParameter(module, path, n, inside[n]) for n in inside]

    def run(
        self,
        forward: Callable[..., Any],
        inputs: Mapping[str, Any],
        assignment: Assignment,
        join: Callable[[Sequence[Any]], Any] = joined,
    ) -> Any:
        """Return what a forward makes of a batch that lies in the order of the assignment.

        It runs at once where all gated modules can tell the samples apart, else span by span, and the outputs
        are joined.
        """
        spans = assignment.spans
        resized = self.resized if inputs.get(RESIZING) else []
        with self.gate.over(assignment):
            if len(spans) < 2 or not (self.sequential or resized):
                try:
                    return self._run(forward, inputs, assignment, resized)
                except UnsplitError:
                    if len(spans) < 2:
                        raise
                    self.sequential = True  # for the batches to come, too
        results = []
        for span in spans:
            within = assignment.within(span)
            with self.gate.over(within):
                own = cut(inputs, slice(span.start, span.stop), spans[-1].stop)
                results.append(self._run(forward, own, within, resized))
        return join(results)

    def _run(
        self,
        forward: Callable[..., Any],
        inputs: Mapping[str, Any],
        assignment: Assignment,
        resized: Sequence[ReplacedParameter],
    ) -> Any:
        """Return what a forward makes of inputs, with the parameters that are replaced for one group."""
        with ExitStack() as stack:
            for one in resized:
                stack.enter_context(self.modules[one.path].aside())
            for one in (*self.replaced, *resized):
                stack.enter_context(one.over(assignment))
            return forward(**inputs)


def parameter_places(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Return where each parameter and buffer stands, by its identity: several places where it is tied.

    A place is the path of a module, and the name of the parameter in it.

    Examples:
        >>> from torch import nn
        >>> from submerge.gating import parameter_places
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> model[1].weight = model[0].weight
        >>> parameter_places(model)[id(model[0].weight)]
        [('0', 'weight'), ('1', 'weight')]
    """
    places: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=True):
        for local, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                places.setdefault(id(tensor), []).append((path, local))
    return places


def parameter_of(model: nn.Module, name: str) -> torch.Tensor:
    """Return a parameter or buffer of a model by its name.

    Examples:
        >>> from torch import nn
        >>> from submerge.gating import parameter_of
        >>> parameter_of(nn.Sequential(nn.Linear(3, 2)), "0.weight").shape
        torch.Size([2, 3])
    """
    path, _, local = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(path), local)
    return tensor
