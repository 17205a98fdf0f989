"""Outputs of modules that do not depend on learned scales, held for batches that come again.

A frozen image tower, or the blocks before the first adapter, give the same outputs in every step, and at
every point of a curve over λ. A pass with gradients to the scales finds these modules: they flow neither to
their inputs nor to their outputs. The next pass of a batch holds the outputs of the outermost ones, and a
later pass of it takes them from there: the same bits, without computing anything inside of the modules.

Of what these modules return most is not looked at again: of a stack of blocks only the last output, of a
tower's hidden states one, or none where a projector follows. Which it is, the order of the modules does not
say (keys wait for the values), so that the pass which holds outputs also notes their `Uses`, and holds the
values of those alone: 5 MB of an image of LLaVA-1.5 in 16 bits, in the place of 34.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from submerge.calibrate._attached import AttachedAdapters
from submerge.calibrate._collect import ModelInputs, Reducer, collect
from submerge.calibrate._uses import HeldTensor, Uses
from submerge.gating import ConstantAssignment, each, leaves, rerouted, tensors

__all__ = ["ReusedOutputs"]

LIMIT = 1 << 30
"""Bytes of outputs that are held, on the CPU."""
Modules = Mapping[str, nn.Module]
Call = tuple[str, int]
"""A module, and how often it ran before in the pass."""


class _Unread(Reducer):
    def update(self, rows: torch.Tensor) -> None:
        pass


class ReusedOutputs:
    """The outputs of a model's constant modules, by batch.

    Args:
        model: in the mode for evaluation, without parameters that get gradients.
        hooked: modules whose inputs are looked at: those around them run in every pass.
        limit: bytes of outputs that are held; batches for which there is no room are computed anew.
    """

    def __init__(self, model: nn.Module, hooked: Collection[str], limit: int = LIMIT) -> None:
        self._model, self._hooked = model, frozenset(hooked)
        self._limit = self._room = limit
        around = {name.rsplit(".", depth)[0] for name in hooked for depth in range(1, name.count(".") + 1)}
        self._running = around | {""}
        self._constant: dict[frozenset[str], Modules] = {}
        self._held: dict[int, tuple[ModelInputs, dict[Call, Any]]] = {}

    @contextmanager
    def over(self, batch: ModelInputs) -> Iterator[None]:
        """Run one pass of a batch inside; it is known again if it is the same object.

        Passes inside may differ in the values of learned scales, and in nothing else.
        """
        run: AbstractContextManager[None] = nullcontext()
        kind = frozenset(batch)
        if id(batch) in self._held:
            run = self._given(self._held[id(batch)][1])
        elif known := self._constant.get(kind):
            run = self._holding(batch, known)
        elif known is None and torch.is_grad_enabled():  # else it does not show which outputs are constant
            run = self._finding(kind)
        with run:
            yield

    def find(self, batch: ModelInputs, adapters: AttachedAdapters) -> None:
        """Find the constant modules of batches of this kind, for passes without gradients, if it can be done.

        It takes one pass, with gradients to all scales of the adapters, in which nothing is saved for them.
        """
        kind, values = frozenset(batch), chain(self._model.parameters(), self._model.buffers())
        if kind in self._constant or any(value.is_inference() for value in values):
            return
        scales = torch.ones(len(adapters.names), requires_grad=True)
        unsaved = saved_tensors_hooks(lambda _: None, lambda held: held)
        with torch.enable_grad(), unsaved, adapters.under(ConstantAssignment(scales)), self._finding(kind):
            collect(self._model, [batch], {name: _Unread() for name in self._hooked})

    def forget(self) -> None:
        """Hold the outputs of no batch any more."""
        self._held.clear()
        self._room = self._limit

    @contextmanager
    def _finding(self, kind: frozenset[str]) -> Iterator[None]:
        """Find the outermost constant modules of batches of a kind: with inputs of certain names."""
        constant: dict[str, bool] = {}
        note = partial(_note, constant)
        handles = [
            module.register_forward_hook(partial(note, name), with_kwargs=True)
            for name, module in self._model.named_modules()
            if name not in self._running
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        outermost: dict[str, nn.Module] = {}
        for name, module in self._model.named_modules():
            inner = any(name.startswith(f"{outer}.") for outer in outermost)
            if constant.get(name) and not inner and _has_maps(module):
                outermost[name] = module
        self._constant[kind] = outermost

    @contextmanager
    def _holding(self, batch: ModelInputs, modules: Modules) -> Iterator[None]:
        outputs: dict[Call, Any] = {}
        calls: Counter[str] = Counter()
        uses = Uses()

        def run(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
            with uses.paused():
                output = forward(*args, **kwargs)
                outputs[name, calls[name]] = each(output, uses.watched)
            calls[name] += 1
            return output

        with rerouted(modules, run), uses:
            yield
        held = {call: each(output, uses.settled, HeldTensor) for call, output in outputs.items()}
        size = sum(one.size for output in held.values() for one in leaves(output, HeldTensor))
        if size <= self._room and not uses.changing:
            self._room -= size
            self._held[id(batch)] = (batch, held)

    @contextmanager
    def _given(self, held: Mapping[Call, Any]) -> Iterator[None]:
        calls: Counter[str] = Counter()

        def run(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
            call = (name, calls[name])
            calls[name] += 1
            if call not in held:
                return forward(*args, **kwargs)
            return each(held[call], HeldTensor.given, HeldTensor)

        modules = {name: self._model.get_submodule(name) for name, _ in held}
        with rerouted(modules, run):
            yield


def _note(
    constant: dict[str, bool], name: str, module: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    """Take note of whether gradients flow to a module's inputs or outputs, in any of its calls."""
    own, given = tensors(output), tensors((args, kwargs))
    depends = not own or any(x.requires_grad for x in (*own, *given)) or not _is_plain(output)
    constant[name] = not depends and constant.get(name, True)


def _is_plain(values: Any) -> bool:
    """Return whether an output is made of tensors, numbers and containers of them alone."""
    if isinstance(values, Mapping):
        return all(map(_is_plain, values.values()))
    if isinstance(values, (list, tuple)):
        return all(map(_is_plain, values))
    return values is None or isinstance(values, (torch.Tensor, str, int, float))


def _has_maps(module: nn.Module) -> bool:
    """Return whether a module has matrices that it multiplies by: others take no longer than to copy."""
    inner = (one for one in module.modules() if not isinstance(one, nn.Embedding))
    return any(p.ndim > 1 for one in inner for p in one.parameters(recurse=False))
