"""A model with adapters, data, and the modules whose inputs are measured: the passes of one measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from submerge.calibrate._attached import AttachedAdapters, attached
from submerge.calibrate._collect import collect
from submerge.calibrate._hooks import choose_hooks
from submerge.calibrate._record import folder_names
from submerge.calibrate._reducers import NullSpaceRatio, row_space
from submerge.calibrate._reuse import ReusedOutputs
from submerge.calibrate._sources import (
    HELD,
    DataSets,
    Inputs,
    Specs,
    holding,
    load_backbone,
    open_adapters,
    read_data,
)
from submerge.errors import Problem, RequestError, few
from submerge.gating import ConstantScales
from submerge.store import Adapter

__all__ = ["BatchCounter", "Lambdas", "Measurement", "Progress", "Scales", "measuring"]

Scales: TypeAlias = float | Sequence[float] | torch.Tensor | Mapping[str, Sequence[float] | torch.Tensor]
Lambdas: TypeAlias = ConstantScales | None
"""Scales λ [K] of all modules, or those of each by name; None for the base."""
Progress: TypeAlias = Callable[[int, int], None]


class BatchCounter:
    """Counts batches, and tells how many there are so far, and in all."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = 0

    def __call__(self, _: int) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True)
class Measurement:
    """A model with adapters, their data, and the modules whose inputs are measured, by the A_k there."""

    adapters: AttachedAdapters
    data: Mapping[str, Inputs]
    hooked: Mapping[str, Sequence[torch.Tensor | None]]
    opened: Mapping[str, Adapter]

    def holding(self) -> Measurement:
        """Return the same, with data that is held, as far as there is room, for several passes over it."""
        room = HELD // len(self.data)
        return replace(self, data={name: holding(inputs, room) for name, inputs in self.data.items()})

    @property
    def names(self) -> tuple[str, ...]:
        return self.adapters.names

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the adapters has no part in the measurement, as text."""
        lists = zip(self.names, self.adapters.left_out, strict=True)
        return tuple(f"{name}: the model has no {few(parts)}" for name, parts in lists if parts)

    def factors(self) -> tuple[dict[str, torch.Tensor], ...]:
        """Return the A_k [r_k, n] of each adapter at the hooked modules that it changes."""
        return tuple(
            {path: a for path, own in self.hooked.items() if (a := own[k]) is not None}
            for k in range(len(self.names))
        )

    @torch.no_grad()
    def ratios(
        self, inputs: Inputs, scales: Lambdas, members: Iterable[int], counter: BatchCounter
    ) -> dict[str, NullSpaceRatio]:
        """Return the ratios of some adapters at each module that one of them changes."""
        ratios = self._no_ratios(members)
        with self.adapters.over(scales):
            collect(self.adapters.model, inputs, ratios, progress=counter)
        self._check_finite(ratios)
        return ratios

    def _no_ratios(self, members: Iterable[int]) -> dict[str, NullSpaceRatio]:
        """Return ratios without any rows, of some adapters at each module that one of them changes."""
        among = set(members)
        factors = {
            path: [a if k in among else None for k, a in enumerate(own)] for path, own in self.hooked.items()
        }
        return {path: NullSpaceRatio(own) for path, own in factors.items() if any(a is not None for a in own)}

    def _check_finite(self, ratios: Mapping[str, NullSpaceRatio]) -> None:
        """Raise `RequestError` where activations were NaN or Inf, of which there is no ratio."""
        wrong = [path for path, ratio in ratios.items() if ratio.count and not ratio.is_finite]
        if wrong:
            dtype = str(next(self.adapters.model.parameters()).dtype).removeprefix("torch.")
            what = f"the inputs of {few(wrong)} have NaN or Inf, in {dtype}"
            hint = "run it in float32 (dtype, or compute_dtype of a recipe)"
            if dtype in ("float32", "float64"):
                hint = "look at the weights of the base and of its adapters, and at the inputs"
            raise RequestError(Problem(what, "the base with its adapters", hint))

    @torch.no_grad()
    def alone(
        self, k: int, points: Sequence[float], inputs: Inputs, reused: ReusedOutputs, counter: BatchCounter
    ) -> torch.Tensor:
        """Return ω [L] of an adapter's own inputs, as a mean over modules, with it alone at each of L scales.

        Each batch is run with all scales before the next one comes, so that it is encoded once, and that what
        no scale changes is held for one batch alone.
        """
        first = self._no_ratios([k])
        ratios = [{path: ratio.anew() for path, ratio in first.items()} for _ in points]
        for batch in inputs:
            reused.find(batch, self.adapters)
            for point, own in zip(points, ratios, strict=True):
                with self.adapters.over(self._only(k, point)), reused.over(batch):
                    collect(self.adapters.model, [batch], own, progress=counter)
                self._check_finite(own)
            reused.forget()
        return torch.stack([torch.stack([r.mean[k] for r in own.values()]).nanmean() for own in ratios])

    def _only(self, k: int, scale: float) -> Lambdas:
        """Return the scales of the base with one adapter."""
        scales = torch.zeros(len(self.names), dtype=torch.float64)
        scales[k] = scale
        return scales if scale else None

    def lambdas(self, scales: Scales | None) -> Lambdas:
        """Return scales [K], or such by module; None for the base."""
        if scales is None:
            return None
        if not isinstance(scales, Mapping):
            return self._row(scales)
        if unknown := [path for path in scales if path not in self.adapters.modules]:
            what = f"no adapter changes {few(unknown)}"
            raise RequestError(Problem(what, "scales", f"there are {few(self.adapters.modules)}"))
        return {path: self._row(row) for path, row in scales.items()}

    def _row(self, values: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        try:
            row = torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            row = torch.tensor(torch.nan)
        if not row.isfinite().all():
            hint = "give one for each adapter, or one number for all"
            raise RequestError(Problem(f"{values!r:.60} has what is no finite number", "scales", hint))
        row = row.expand(len(self.names)) if row.ndim == 0 else row
        if row.shape != (len(self.names),):
            what = f"there are {list(row.shape)} values for {len(self.names)} adapters"
            raise RequestError(Problem(what, "scales", "give one for each, or one number for all"))
        return row

    def check_own_data(self) -> None:
        """Raise `RequestError` where an adapter has no data of its name."""
        if missing := [name for name in self.names if name not in self.data]:
            hint = f"there is data for {few(self.data)}; names must be those of the adapters"
            raise RequestError(Problem(f"there is no data for {few(missing)}", "data", hint))


@contextmanager
def measuring(
    model: str | Path | nn.Module,
    adapters: Specs,
    data: DataSets,
    hooks: str,
    encoding: Mapping[str, Any],
    folder: str | Path | None = None,
) -> Iterator[Measurement]:
    """Attach adapters to a model, frozen and in the mode for evaluation; leave it as it was at the end.

    `encoding` is what `read_data` encodes by: the processor, and the sizes of batches and of texts. `folder`
    is what the model was loaded from, if it was.
    """
    opened = open_adapters(adapters)
    if isinstance(model, nn.Module):
        loaded = model
    else:
        loaded, folder = load_backbone(model), model
    inputs = read_data(data, list(opened), loaded, **encoding)
    with attached(loaded, opened, other_rows=True) as at, _evaluating(loaded), _frozen(loaded):
        _check_supported(at)
        chosen = choose_hooks(loaded, list(at.down), hooks, _stored_names(folder, loaded, at.down))
        hooked = {path: _with_null_space(at.down[path], len(opened)) for path in chosen}
        _check_hooks(at, hooked)
        measured = {p: own for p, own in hooked.items() if any(a is not None for a in own)}
        yield Measurement(at, inputs, measured, opened)


def _stored_names(folder: str | Path | None, model: nn.Module, modules: Iterable[str]) -> dict[str, str]:
    """Return what a folder calls modules of the model that was loaded from it, where that shows."""
    try:
        return {} if folder is None else folder_names(str(folder), model, modules)
    except RequestError:
        return {}


def _with_null_space(down: Mapping[int, torch.Tensor], count: int) -> list[torch.Tensor | None]:
    """Return the A_k [r_k, n] of a module whose rank is below n, and None for all other adapters."""
    return [a if (a := down.get(k)) is not None and _has_null_space(a) else None for k in range(count)]


def _has_null_space(down: torch.Tensor) -> bool:
    """Return whether the rank of A_k [r_k, n] is below n."""
    return row_space(down).shape[1] < down.shape[1]


def _check_supported(at: AttachedAdapters) -> None:
    """Raise `RequestError` for each adapter whose factors are all of a kind that scales do not act on."""
    measured = {k for down in at.down.values() for k in down}
    unmeasured = [reasons for k, reasons in enumerate(at.unsupported) if reasons and k not in measured]
    firsts = [next(iter(reasons.items())) for reasons in unmeasured]
    hint = "leave this adapter out, or train without it"
    if problems := [Problem(why, path, hint) for path, why in firsts]:
        raise RequestError(problems)


def _check_hooks(at: AttachedAdapters, hooked: Mapping[str, Sequence[torch.Tensor | None]]) -> None:
    """Raise `RequestError` for each adapter that has a ratio at none of the modules."""
    problems = []
    for k, name in enumerate(at.names):
        if any(own[k] is not None for own in hooked.values()):
            continue
        full = [path for path in hooked if k in at.down[path]]
        if full:
            width = at.down[full[0]][k].shape[1]
            what = f"the rank of {name} is not below the width {width} of {few(full)}: there is no null space"
        else:
            what = f"{name} changes none of the modules that are measured: {few(hooked)}"
        others = [path for path, down in at.down.items() if k in down and _has_null_space(down[k])]
        hint = "it has no factors of a linear map that can be measured anywhere: leave it out"
        if others:
            hint = f"it can be measured at {few(others)}: choose among these"
        elif full:
            hint = "nor is it anywhere else: leave it out, or train one of a smaller rank"
        problems.append(Problem(what, "hooks", hint))
    if problems:
        raise RequestError(problems)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model run without dropout inside, and set each module's mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter of a model get a gradient inside."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
