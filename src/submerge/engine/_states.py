"""A merge of state dicts in memory, by the same jobs as a merge of files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from submerge.arguments import checked
from submerge.deferred import torch
from submerge.device import check_device
from submerge.engine._arguments import recipe_of
from submerge.engine.output import Records
from submerge.engine.plan import Inputs, Settings, of_unknown_layout, plan_models
from submerge.engine.work import (
    ChunkReader,
    Passes,
    memory_target,
    nonfinite_error,
    prepared,
    range_passes,
    run_jobs,
)
from submerge.errors import Problem, RequestError, few
from submerge.recipe import load_recipe
from submerge.store import DTYPES, Checkpoint, FileTable, TensorEntry, dtype_named, lora_file, torch_dtype

__all__ = ["merge_state_dicts"]

State: TypeAlias = "Mapping[str, torch.Tensor] | torch.nn.Module"


@checked
def merge_state_dicts(
    states: Sequence[State] | Mapping[str, State],
    *,
    base: State | None = None,
    method: str = "linear",
    dtype: str | None = None,
    rules: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    allow_nonfinite: bool = False,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Return the merged state dict: the base's names (or the first model's), on the CPU.

    Args:
        states: the models, each a state dict or a module, in a sequence or by name.
        base: the model that they were fine-tuned from, where the method needs it.
        method: a name from `submerge methods`.
        dtype: of the float tensors that are returned, such as "bfloat16"; the base's by default.
        rules: what to do where tensors differ, as in a recipe.
        seed: for methods that draw at random.
        device: where to compute: "cpu", "cuda" or "cuda:N".
        threads: workers; one a core by default.
        allow_nonfinite: return a result that holds NaN or Inf.
        **options: the method's parameters. A model-scope option takes one value, or a sequence with
            one for each model, or a mapping from the models' names. A shared option takes
            one value, or a setting as in a recipe (a gradient, or a list of `{filter, value}`).

    Warns:
        UserWarning: the method merges fused matrices (`qkv_proj`) map by map, and nothing says which rows are
            whose. The configuration of a base that is a module of transformers does.

    Raises:
        RequestError: the request is wrong; every problem is named.
        WorkError: the values hold NaN or Inf, and `allow_nonfinite` is false.

    Examples:
        >>> import torch
        >>> import submerge
        >>> base = {"weight": torch.zeros(3)}
        >>> tuned = [{"weight": torch.tensor([1.0, -2.0, 0.5])}, {"weight": torch.tensor([3.0, 2.0, -0.1])}]
        >>> submerge.merge_state_dicts(tuned, base=base, method="task_arithmetic", weight=[0.5, 0.25])
        {'weight': tensor([ 1.2500, -0.5000,  0.2250])}
    """
    named = _named(states)
    everything = {**({"base": base} if base is not None else {}), **named}
    if base is not None and "base" in named:
        raise RequestError("a model is called 'base'; give it another name")
    recipe = load_recipe(recipe_of(list(named), base is not None, method, dtype, rules, seed, options))
    place = check_device(device)
    settings = Settings(device=place, threads=threads, max_memory=1 << 62, allow_nonfinite=allow_nonfinite)
    opened = {name: _checkpoint(name, _state(name, state)) for name, state in everything.items()}
    inputs = replace(Inputs.of(recipe, opened), told_config=_config(base))
    plan = plan_models(recipe, inputs, settings)
    if whole := of_unknown_layout(plan.tensors):
        what = "each merged as one matrix, for nothing says which rows are whose"
        hint = "pass the base as a module of transformers; or say fused='whole'"
        warnings.warn(f"{few(whole)}: {what} ({hint})", stacklevel=2)
    merged = {t.name: torch.empty(t.shape, dtype=torch_dtype(t.dtype)) for t in plan.tensors}
    files = FileTable()  # of which none is opened
    records = Records(plan)

    def job(index: int) -> Passes:
        tensor = plan.tensors[index]
        sources = [plan.models[i.model].source(i.entry.name, files) for i in tensor.read]
        target = memory_target(index, merged[tensor.name], tensor.dtype, records.add, name=tensor.name)
        return range_passes(ChunkReader(tensor, sources, seed=seed), target)

    jobs = map(job, range(len(plan.tensors)))
    with prepared(plan.tensors):
        run_jobs(jobs, threads=plan.budget.workers, device=place)
    nonfinite = records.nonfinite()
    if nonfinite and not allow_nonfinite:
        raise nonfinite_error(nonfinite)
    return merged


def _named(states: Sequence[State] | Mapping[str, State]) -> dict[str, State]:
    """Return the models by name; those of a sequence are called by their place."""
    if isinstance(states, Mapping):
        return dict(states)
    if isinstance(states, Sequence) and not isinstance(states, str):
        return {f"states[{i}]": state for i, state in enumerate(states)}
    what = f"the models are a sequence or a mapping, not an object of type {type(states).__name__}"
    raise RequestError(Problem(what, "states", "write [first, second]"))


def _state(name: str, model: State) -> Mapping[str, torch.Tensor]:
    """Return the state dict that a model is, or has."""
    if isinstance(model, Mapping):
        return model
    if not isinstance(model, torch.nn.Module):
        what = f"a model is a state dict or a module, not an object of type {type(model).__name__}"
        raise RequestError(Problem(what, name, "pass models in a list, or in a dict by name"))
    if hasattr(model, "peft_config"):
        what = "is a model with adapters of PEFT, which are factors of updates and no weights"
        hint = "submerge.merge_adapters merges them; or pass what model.merge_and_unload() returns"
        raise RequestError(Problem(what, name, hint))
    state: Mapping[str, torch.Tensor] = model.state_dict()
    return state


def _config(model: State | None) -> dict[str, Any] | None:
    """Return the configuration that a module of transformers has."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return dict(to_dict()) if callable(to_dict) else None


def _checkpoint(name: str, state: Mapping[str, torch.Tensor]) -> Checkpoint:
    entries = {}
    for key, tensor in state.items():
        where = f"{name}, tensor {key}"
        if not isinstance(tensor, torch.Tensor):
            what = f"a state dict holds tensors, not an object of type {type(tensor).__name__}"
            raise RequestError(Problem(what, where))
        code = dtype_named(tensor.dtype)
        if code is None or not DTYPES[code].supported:
            raise RequestError(Problem(f"{tensor.dtype} cannot be merged", where))
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise RequestError(Problem("is no dense tensor with values", where))
        entries[key] = TensorEntry.in_memory(key, code, tuple(tensor.shape))
    memory = {key: tensor.detach().cpu() for key, tensor in state.items()}
    model = Checkpoint(name, Path(name), None, entries, {}, memory=memory)
    if lora_file(model) is not None:
        hint = "save it, and merge the files (`submerge.merge`); `merge_adapters` takes a PEFT model"
        raise RequestError(Problem("is a LoRA, whose factors must not be merged one by one", name, hint))
    return model
