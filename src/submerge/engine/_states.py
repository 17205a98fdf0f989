"""A merge of state dicts in memory, by the same jobs as a merge of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from submerge.engine._job import Job
from submerge.engine._matrix import MatrixJob
from submerge.engine._merge import nonfinite_error
from submerge.engine._plan import Settings, check_device, plan_models
from submerge.engine._pool import run_jobs
from submerge.engine._record import TaskRecord
from submerge.engine._tensor import torch_dtype
from submerge.errors import Problem, RequestError
from submerge.methods import METHODS
from submerge.recipe import load_recipe
from submerge.store import DTYPES, Checkpoint, MemorySink, MemorySource, TensorEntry, lora_file

__all__ = ["merge_state_dicts", "recipe_of"]

State = Mapping[str, torch.Tensor]
_CODES = {dtype.torch: code for code, dtype in DTYPES.items() if dtype.torch is not None and dtype.supported}


def merge_state_dicts(
    states: Sequence[State] | Mapping[str, State],
    *,
    base: State | None = None,
    method: str = "linear",
    dtype: str | None = None,
    rules: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    allow_nonfinite: bool = False,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Return the merged state dict: the base's names (or the first model's), on the CPU.

    Args:
        states: the models, as state dicts in a sequence, or by name.
        base: the model that they were fine-tuned from, where the method needs it.
        method: a name from `submerge methods`.
        dtype: of the float tensors that are returned, such as "bfloat16"; the base's by default.
        rules, seed: as in a recipe.
        device, threads: where and with how many workers to compute.
        options: the method's parameters. A model-scope option takes one value, or a sequence with
            one for each model, or a mapping from the models' names. A shared option takes
            one value, or a setting as in a recipe (a gradient, or a list of `{filter, value}`).

    Raises:
        RequestError: the request is wrong; every problem is named.
        WorkError: the values hold NaN or Inf, and `allow_nonfinite` is false.
    """
    named = dict(states) if isinstance(states, Mapping) else {f"states[{i}]": s for i, s in enumerate(states)}
    everything = {**({"base": base} if base is not None else {}), **named}
    if base is not None and "base" in named:
        raise RequestError("a model is called 'base'; give it another name")
    recipe = load_recipe(recipe_of(list(named), base is not None, method, dtype, rules, seed, options))
    settings = Settings(device=device, threads=threads, max_memory=1 << 62, allow_nonfinite=allow_nonfinite)
    specs = list(everything)
    plan = plan_models(recipe, [_checkpoint(n, s) for n, s in everything.items()], specs, settings)
    merged = {t.name: torch.empty(t.shape, dtype=torch_dtype(t.dtype)) for t in plan.tensors}
    sink = MemorySink(merged)
    found: dict[str, dict[str, int]] = {}

    def finished(_: Any, result: Any) -> None:
        if isinstance(result, TaskRecord):
            plan.tally(found, result)

    jobs = (
        (MatrixJob if tensor.matrix else Job)(
            index=index,
            plan=tensor,
            entry=TensorEntry(tensor.name, tensor.dtype, tensor.shape, None, 0, 0),
            sources=[MemorySource(plan.models[i.model].memory[i.entry.name]) for i in tensor.read],
            sink=sink,
            seed=seed,
            hashed=False,
        )
        for index, tensor in enumerate(plan.tensors)
    )
    run_jobs(jobs, finished, threads=plan.budget.workers, device=check_device(device))
    if found and not allow_nonfinite:
        raise nonfinite_error(found)
    return merged


def recipe_of(
    names: Sequence[str],
    has_base: bool,
    method: str,
    dtype: str | None,
    rules: Mapping[str, str] | None,
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the recipe that the arguments amount to."""
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    known = METHODS.get(method)
    for name, value in options.items():
        option = known.option(name) if known else None
        if option is None or option.scope == "shared":
            shared[name] = value
        elif isinstance(value, Mapping) and not {"value", "filter"} & set(value):
            if unknown := [key for key in value if key not in own]:
                raise RequestError(Problem(f"{name} names models that are not there: {unknown}"))
            for model, one in value.items():
                own[model][name] = one
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != len(names):
                raise RequestError(Problem(f"{name} has {len(value)} values for {len(names)} models"))
            for model, one in zip(names, value, strict=True):
                own[model][name] = one
        else:
            shared[name] = value
    given: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name, "parameters": own[name]} for name in names],
        "parameters": shared,
        "base_model": "base" if has_base else None,
        "dtype": dtype,
        "rules": dict(rules) if rules else None,
        "seed": seed,
    }
    return {key: value for key, value in given.items() if value is not None}


def _checkpoint(name: str, state: State) -> Checkpoint:
    entries = {}
    for key, tensor in state.items():
        where = f"{name}, tensor {key}"
        if not isinstance(tensor, torch.Tensor):
            what = f"a state dict holds tensors, not an object of type {type(tensor).__name__}"
            raise RequestError(Problem(what, where))
        if tensor.dtype not in _CODES:
            raise RequestError(Problem(f"{tensor.dtype} cannot be merged", where))
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise RequestError(Problem("is no dense tensor with values", where))
        shape = tuple(tensor.shape)
        nbytes = tensor.numel() * tensor.element_size()
        entries[key] = TensorEntry(key, _CODES[tensor.dtype], shape, None, 0, nbytes)
    memory = {key: tensor.detach().cpu() for key, tensor in state.items()}
    model = Checkpoint(name, Path(name), None, entries, {}, memory=memory)
    if lora_file(model) is not None:
        hint = "save it, and merge the files (`submerge.merge`); `merge_adapters` takes a PEFT model"
        raise RequestError(Problem("is a LoRA, whose factors must not be merged one by one", name, hint))
    return model
