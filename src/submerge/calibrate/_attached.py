"""Adapters at the modules of a transformers model in memory, each with a scale of its own.

K adapters of one base are one low-rank update of each module that they change:

    y = W x + Σ_k λ_k s_k B_k A_k x = W x + B_cat diag(λ ⊗ 1_r) A_cat x

where the ranks r_k may differ, and the scale s_k (alpha / r, or alpha / √r of rsLoRA) is in the factors. New
values Θ_k of a parameter (`modules_to_save`, biases, norms) act as W + Σ_k λ_k (Θ_k − W). With λ = 0 the
model is the base, with λ = e_k it is the base with adapter k, with λ = c · 1 task arithmetic. A parameter
that another module reads, past its own (as Mamba's mixer the weight of `dt_proj`), is replaced in each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from submerge.calibrate._scaled_parts import (
    ScaledParameter,
    runner_of,
    scaled_parameters,
    unscaled_parameters,
)
from submerge.errors import Problem, RequestError, few
from submerge.gating import (
    Assignment,
    ConstantAssignment,
    ConstantScales,
    Gate,
    Observer,
    Recent,
    ReplacedParameter,
    gate_module,
    observe,
    replace_parameters,
    restore_parameters,
    ungate_module,
)
from submerge.names import has_match, layer_of
from submerge.store import (
    Adapter,
    ComputedUpdate,
    LowRankPart,
    Part,
    Replace,
    Rows,
    Transformed,
    fit_adapter,
    was_trained_on,
)

__all__ = ["AttachedAdapters", "attached", "fitted_to"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class AttachedAdapters:
    """Adapters at a model's `modules`: `down` [r_k, n] are their A_k by module and adapter.

    `units` are, by module and by the adapters that change it, how many scales `over` takes for units of rank
    one: r_k of a linear map, or 1.
    Embeddings, kernels, packed experts and new values have none: their modules are among `modules` alone.
    `unsupported` names, by adapter, the parameters that it changes in a way that scales do not act on (DoRA),
    and `left_out` those that the model does not have.
    """

    model: nn.Module
    names: tuple[str, ...]
    gate: Gate
    modules: list[str] = field(default_factory=list)
    down: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    units: dict[str, dict[int, int]] = field(default_factory=dict)
    unsupported: tuple[dict[str, str], ...] = ()
    left_out: tuple[tuple[str, ...], ...] = ()
    replaced: list[ReplacedParameter] = field(default_factory=list)

    @contextmanager
    def under(self, assignment: Assignment, within: str = "") -> Iterator[None]:
        """Run the model, or the module `within` it, with an assignment in force."""
        with ExitStack() as stack:
            stack.enter_context(self.gate.over(assignment))
            for one in self._replaced_in(within):
                stack.enter_context(one.over(assignment))
            yield

    def _replaced_in(self, module: str) -> list[ReplacedParameter]:
        return [one for one in self.replaced if not module or one.path.startswith(f"{module}.")]

    @contextmanager
    def over(self, scales: ConstantScales | None) -> Iterator[None]:
        """Run what is inside with scales λ [K], or with scales by module; None is the base.

        Those of a module are a tensor [K], or a mapping from adapters' numbers to scales [r_k] of their
        rank-one units, in the order of the rows of A_k, or one for all; what an adapter changes beside the
        factors (new values, biases) takes the mean of these. Modules, and adapters of such a mapping, that
        are not named act not. Scales may require gradients.

        Raises `RequestError` as soon as a module runs that an adapter with a scale other than 0 changes in
        a way that scales do not act on.
        """
        if scales is None:
            yield
            return
        acting = _acting(scales) if any(self.unsupported) else set()
        reasons = {path: why for k in sorted(acting) for path, why in self.unsupported[k].items()}
        modules = {path: self.model.get_submodule(path) for path in reasons}
        with self.under(ConstantAssignment(scales)), observe(modules, _Refusal(reasons)):
            yield


def _acting(scales: ConstantScales) -> set[int]:
    """Return the adapters of which a scale is not 0, or is learned."""
    by_module = [scales] if isinstance(scales, torch.Tensor) else scales.values()
    rows = [enumerate(row) if isinstance(row, torch.Tensor) else row.items() for row in by_module]
    return {k for row in rows for k, value in row if value.requires_grad or value.any()}


class _Refusal(Observer):
    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        hint = "choose modules before it as hooks, or train without it"
        raise RequestError(Problem(self._reasons[name], name, hint))


@contextmanager
def attached(
    model: nn.Module, adapters: Mapping[str, Adapter], *, other_rows: bool = False
) -> Iterator[AttachedAdapters]:
    """Attach adapters to a model in place, and detach them at the end; without scales it runs as the base.

    A parameter outside of the layers that the model does not have, as a task's own head, is left out: the
    model may be a part of the one that was trained. All other parts of an adapter must fit.

    Args:
        model: a model of transformers without adapters, in any dtype and on any device.
        adapters: opened, by name.
        other_rows: whether tables that an adapter saved whole may have rows of more or of fewer tokens than
            the model's. A row is of one token in both: of the others the model keeps its own, and what it
            has no rows for is left out.

    Raises:
        RequestError: an adapter does not fit the model or has NaN or Inf, or the model has adapters or a gate
            already.

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
            fitted[name] = fitted_to(model, adapter, other_rows=other_rows)
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
        path_of = attrgetter("path")
        scaled = scaled_parameters(model, [one for one, _ in fitted.values()])
        for path, parameters in groupby(sorted(scaled, key=path_of), path_of):
            _attach(result, path, list(parameters), stack)
        yield result


def fitted_to(
    model: nn.Module, adapter: Adapter, *, other_rows: bool = False
) -> tuple[Adapter, tuple[str, ...]]:
    """Return an adapter under the model's names, and its parameters, or rows, that the model has not."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = list(shapes)
    left_out = tuple(n for n in adapter.parts if layer_of(n) is None and not has_match(n, known))
    parts = {name: part for name, part in adapter.parts.items() if name not in left_out}
    if not parts:
        what = f"changes nothing that {type(model).__name__} has"
        hint = "give the base that it was trained on"
        if left_out:
            what = f"changes {few(left_out)} alone, which {type(model).__name__} does not have"
            hint += "; if that is a head, leave the adapter out: the model runs without heads"
        raise RequestError(Problem(what, str(adapter.path), hint))
    fitted, longer = _fitted(replace(adapter, parts=parts), shapes, other_rows=other_rows)
    values = model.state_dict()
    others = [n for n, part in fitted.parts.items() if not was_trained_on(fitted, part, values[n])]
    if others:
        what = f"was trained on other values of {few(others)} than the model's, which it has saved"
        raise RequestError(Problem(what, str(adapter.path), "give the model that it was trained on"))
    return fitted, (*left_out, *longer)


def _fitted(adapter: Adapter, shapes: Shapes, *, other_rows: bool) -> tuple[Adapter, tuple[str, ...]]:
    """Return an adapter that fits the shapes, and what of its longer tables is beyond them."""
    if other_rows:
        fitted = fit_adapter(adapter, shapes, other_rows=True)
        resized = {name: part for name, part in fitted.parts.items() if _is_resized(part, shapes[name])}
        rows = {name: part.entry.shape[0] for name, part in resized.items() if isinstance(part, Replace)}
        if len(rows) == len(resized):
            beyond = (f"{n}[{shapes[n][0]}:]" for n, count in rows.items() if count > shapes[n][0])
            return fitted, tuple(beyond)
    return fit_adapter(adapter, shapes), ()


def _is_resized(part: Part, shape: tuple[int, ...]) -> bool:
    """Return whether a table that was saved whole has another number of rows."""
    if isinstance(part, LowRankPart | ComputedUpdate | Transformed):
        return part.copy is not None and part.copy.shape != shape
    table = part.entry if isinstance(part, Replace) else part.table if isinstance(part, Rows) else None
    return table is not None and tuple(table.shape) != shape


def _unsupported(model: nn.Module, label: str, adapter: Adapter) -> dict[str, str]:
    """Return, by the module that runs with it, what of an adapter scales do not act on."""
    return {
        runner_of(model, name): f"{label} changes {name}, which is not supported here: {why}"
        for name, why in unscaled_parameters(model, adapter)
    }


def _attach(
    adapters: AttachedAdapters, path: str, parameters: Sequence[ScaledParameter], stack: ExitStack
) -> None:
    """Gate one module by the updates of its parameters, until the stack is left."""
    module = adapters.model.get_submodule(path)
    updates = {p.name: p.gated(adapters.gate, module) for p in parameters}
    taken = {n: u for n, u in updates.items() if runner_of(adapters.model, f"{path}.{n}") != path}
    if taken:
        adapters.replaced += replace_parameters(module, path, taken)
        stack.callback(restore_parameters, module)
    if inside := {name: update for name, update in updates.items() if name not in taken}:
        gate_module(adapters.gate, module, inside, path)
        stack.callback(ungate_module, module)
    adapters.modules.append(path)
    units = adapters.units.setdefault(path, {})
    for parameter in parameters:
        for k, count in parameter.units.items():
            units[k] = max(count, units.get(k, 0))
        if parameter.down:
            adapters.down[path] = parameter.down
