"""Adapters at the modules of a transformers model in memory, each with a scale of its own.

K adapters of one base are one low-rank update of each module that they change:

    y = W x + Σ_k λ_k s_k B_k A_k x = W x + B_cat diag(λ ⊗ 1_r) A_cat x

where the ranks r_k may differ, and the scale s_k (alpha / r, or alpha / √r of rsLoRA) is in the factors. With
λ = 0 the model is the base, with λ = e_k it is the base with adapter k, with λ = c · 1 task arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from submerge.algebra import Triplets
from submerge.errors import Problem, RequestError, few
from submerge.gating import (
    ConstantAssignment,
    Gate,
    GatedFactors,
    GatedModule,
    Observer,
    Recent,
    gate_module,
    is_transposed,
    observe,
    ungate_module,
)
from submerge.names import layer_of, match_names
from submerge.store import Adapter, FileTable, LowRankPart, fit_adapter

__all__ = ["AttachedAdapters", "attached"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class AttachedAdapters:
    """Adapters at a model's `modules`: `down` [r_k, n] are their A_k by module and adapter.

    An embedding has none: it is among `modules` alone. `unsupported` names, by adapter, the parameters that
    it changes in a way that scales do not act on (new values, biases, DoRA, other than linear maps), and
    `left_out` those that the model does not have.
    """

    model: nn.Module
    names: tuple[str, ...]
    gate: Gate
    modules: list[str] = field(default_factory=list)
    down: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    unsupported: tuple[dict[str, str], ...] = ()
    left_out: tuple[tuple[str, ...], ...] = ()

    def members(self) -> dict[str, tuple[int, ...]]:
        """Return, for each module, the adapters whose scales act in it."""
        return {path: _members(self.model.get_submodule(path)) for path in self.modules}

    @contextmanager
    def over(self, scales: torch.Tensor | Mapping[str, torch.Tensor] | None) -> Iterator[None]:
        """Run what is inside with scales λ [K], or with scales [K] by module; None is the base.

        Scales may require gradients. Modules that a mapping does not name have the base's parameters.
        Raises `RequestError` as soon as a module runs that an adapter with a scale other than 0 changes in
        a way that scales do not act on.
        """
        if scales is None:
            yield
            return
        values = [scales] if isinstance(scales, torch.Tensor) else list(scales.values())
        acting = [k for k in range(len(self.names)) if any(v.requires_grad or v[k] != 0 for v in values)]
        reasons = {path: why for k in acting for path, why in self.unsupported[k].items()}
        modules = {path: self.model.get_submodule(path) for path in reasons}
        with self.gate.over(ConstantAssignment(scales)), observe(modules, _Refusal(reasons)):
            yield


class _Refusal(Observer):
    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        hint = "choose modules before it as hooks, or train without it"
        raise RequestError(Problem(self._reasons[name], name, hint))


@contextmanager
def attached(model: nn.Module, adapters: Mapping[str, Adapter]) -> Iterator[AttachedAdapters]:
    """Attach adapters to a model in place, and detach them at the end; without scales it runs as the base.

    A parameter outside of the layers that the model does not have, as a task's own head, is left out: the
    model may be a part of the one that was trained. All other parts of an adapter must fit.

    Args:
        model: a model of transformers without adapters, in any dtype and on any device.
        adapters: opened, by name.

    Raises:
        RequestError: an adapter does not fit the model, or the model has adapters or a gate already.

    Examples:
        >>> import torch
        >>> import submerge
        >>> from transformers import AutoModelForCausalLM
        >>> from submerge.calibrate import attached
        >>> from submerge.store import open_adapter
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=4)
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> ids = torch.tensor([[3, 14, 15, 9]])
        >>> with attached(model, {"chat": open_adapter("chat-lora")}) as adapters:
        ...     base = model(ids).logits
        ...     with adapters.over(torch.tensor([1.0])):
        ...         print(torch.equal(model(ids).logits, base))
        False
    """
    if any(".lora_" in name for name, _ in model.named_parameters()):
        hint = "give the base alone, and the adapters by their folders"
        raise RequestError(Problem("has adapters of PEFT already", type(model).__name__, hint))
    fitted: dict[str, tuple[Adapter, tuple[str, ...]]] = {}
    problems: list[Problem] = []
    for name, adapter in adapters.items():
        try:
            fitted[name] = _fitted(model, adapter)
        except RequestError as error:
            problems += error.problems
    paths = {n.rpartition(".")[0] for one, _ in fitted.values() for n in one.parts}
    if taken := [path for path in sorted(paths) if "forward" in model.get_submodule(path).__dict__]:
        what = f"{few(taken)} run by a forward that was put in the place of their own"
        problems.append(Problem(what, type(model).__name__, "give a model without gates and hooks"))
    if problems:
        raise RequestError(problems)
    unsupported = tuple(_unsupported(model, name, one) for name, (one, _) in fitted.items())
    left_out = tuple(names for _, names in fitted.values())
    gate = Gate(Recent(0))  # scales make no sets of members, whose cores could be used again
    result = AttachedAdapters(model, tuple(fitted), gate, unsupported=unsupported, left_out=left_out)
    with ExitStack() as stack:
        for path, parts in _factors(model, [one for one, _ in fitted.values()]).items():
            _attach(result, path, parts)
            stack.callback(ungate_module, model.get_submodule(path))
        yield result


def _fitted(model: nn.Module, adapter: Adapter) -> tuple[Adapter, tuple[str, ...]]:
    """Return an adapter under the model's names, and its parameters that the model does not have."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    left_out = tuple(n for n in adapter.parts if layer_of(n) is None and not _has_place(n, shapes))
    parts = {name: part for name, part in adapter.parts.items() if name not in left_out}
    if not any(isinstance(part, LowRankPart) for part in parts.values()):
        what = f"changes nothing that {type(model).__name__} has"
        raise RequestError(Problem(what, str(adapter.path), "give the base that it was trained on"))
    return fit_adapter(replace(adapter, parts=parts), shapes), left_out


def _has_place(name: str, shapes: Shapes) -> bool:
    try:
        match_names([name], list(shapes))
    except RequestError:
        return False
    return True


def _members(module: nn.Module) -> tuple[int, ...]:
    """Return the numbers of the adapters that have an update of a gated module."""
    gated = module.submerge
    assert isinstance(gated, GatedModule)
    return tuple(sorted({k for name in gated.updates for k in gated.update(name).places}))


def _is_scaled(model: nn.Module, adapter: Adapter, name: str) -> bool:
    """Return whether a part is a low-rank update of a linear map or an embedding."""
    path, _, local = name.rpartition(".")
    module, part = model.get_submodule(path), adapter.parts[name]
    linear = isinstance(module, (nn.Linear, nn.Embedding)) or is_transposed(module)
    return linear and local == "weight" and isinstance(part, LowRankPart) and adapter.dense_only(name) is None


def _unsupported(model: nn.Module, label: str, adapter: Adapter) -> dict[str, str]:
    """Return, by module, what of an adapter scales do not act on."""
    reasons = {}
    for name in adapter.parts:
        if not _is_scaled(model, adapter, name):
            why = adapter.dense_only(name) or "it is no linear map"
            reasons[name.rpartition(".")[0]] = f"{label} changes {name}, which is not supported here: {why}"
    return reasons


def _factors(model: nn.Module, adapters: Sequence[Adapter]) -> dict[str, dict[int, Triplets]]:
    """Return the factors of each module, by adapter, with the adapter's scale in the left ones."""
    factors: dict[str, dict[int, Triplets]] = {}
    with FileTable() as table:
        for k, adapter in enumerate(adapters):
            for name in (n for n in adapter.parts if _is_scaled(model, adapter, n)):
                path = name.rpartition(".")[0]
                wide = torch.promote_types(torch.float32, model.get_parameter(name).dtype)
                left, right = (factor.to(wide) for factor in adapter.factors(name, table))
                factors.setdefault(path, {})[k] = Triplets(left, left.new_ones(left.shape[1]), right)
    return factors


def _attach(adapters: AttachedAdapters, path: str, parts: Mapping[int, Triplets]) -> None:
    """Gate one module by the factors of the adapters that change it."""
    module = adapters.model.get_submodule(path)
    transposed, table = is_transposed(module), isinstance(module, nn.Embedding)
    update = GatedFactors(
        adapters.gate, path, parts, rule="sum", scale=1.0, transposed=transposed, table=table
    )
    gated = gate_module(adapters.gate, module, {"weight": update}, path)
    gated.to(adapters.model.get_parameter(f"{path}.weight").device)
    adapters.modules.append(path)
    if not table:
        adapters.down[path] = {k: update.down[at] for k, at in update.places.items()}
