"""A task's model: the base with its adapter, of which least squares merge one part, and CPM keeps another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from submerge.deferred import torch
from submerge.engine.work import EditedSource
from submerge.errors import Problem, RequestError
from submerge.names import MultimodalParts, module_names, multimodal_parts
from submerge.store import (
    DTYPES,
    Adapter,
    Checkpoint,
    FileTable,
    LowRankPart,
    Source,
    byte_view,
    lay_over,
    open_model,
)

__all__ = ["TaskModel", "open_task_model", "read_values"]


@dataclass(frozen=True)
class TaskModel:
    """A task's model.

    Attributes:
        base: on which the adapter lies.
        adapter: as its files have it.
        model: the base with the adapter.
        updates: what the adapter does to linear maps, by the base's names, but for those of the projector.
        parts: where the base has its encoders and its projector; None of a model without.
    """

    base: Checkpoint
    adapter: Adapter
    model: Checkpoint
    updates: Adapter
    parts: MultimodalParts | None

    def own_projector(self, table: FileTable) -> dict[str, torch.Tensor]:
        """Return all parameters of the task's projector in the base's dtypes; none where it is the base's."""
        if self.parts is None:
            return {}
        own, is_base = {}, True
        for name in filter(self.parts.in_projector, self.base.tensors):
            before = read_values(self.base, name, table)
            own[name] = read_values(self.model, name, table).to(before.dtype)
            is_base &= torch.equal(own[name], before)
        return {} if is_base else own


def read_values(model: Checkpoint, name: str, table: FileTable) -> torch.Tensor:
    """Return a tensor of a model, with what an adapter on it does to it."""
    entry = model.tensors[name]
    values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype].torch)
    edited = model.adapter is not None and name in model.adapter.parts
    source: Source = EditedSource(model, model, name, table) if edited else model.source(name, table)
    source.read(0, entry.numel, byte_view(values))
    return values


def open_task_model(spec: str, base: Checkpoint) -> TaskModel:
    """Return the model that a task's adapter makes of the base.

    Raises `RequestError` where the adapter does not fit, changes the encoder, or changes what least squares
    over linear maps have no rule for.
    """
    try:
        adapter = open_model(spec, root=Path.cwd(), adapter=True)
    except RequestError as error:
        raise RequestError([_with_way_out(problem) for problem in error.problems]) from None
    assert isinstance(adapter, Adapter)
    parts = multimodal_parts({name: entry.shape for name, entry in base.tensors.items()})
    if problems := [p for name in adapter.parts if (p := _refusal(adapter, name, parts)) is not None]:
        raise RequestError(problems[:3])
    model = lay_over(base, adapter, spec, module_names(base.config, base.tensors))
    fitted = model.adapter
    assert fitted is not None
    own = {name: part for name, part in fitted.parts.items() if parts is None or not parts.in_projector(name)}
    if not own:
        what = "changes no linear map of the language model: there is nothing to merge by least squares"
        raise RequestError(Problem(what, str(adapter.path), "train the task on these, too"))
    return TaskModel(base, adapter, model, replace(fitted, parts=own), parts)


def _with_way_out(problem: Problem) -> Problem:
    if "a whole model" not in problem.what:
        return problem
    hint = f"make an adapter of it: submerge extract-lora {problem.where} --base … --rank 16 -o ADAPTER"
    return replace(problem, hint=hint)


def _refusal(adapter: Adapter, name: str, parts: MultimodalParts | None) -> Problem | None:
    """Return why what an adapter does to a parameter cannot be taken into a state, or None if it can."""
    if parts is None:
        return _no_rule(adapter, name)
    if any(_is_in(name, encoder) for encoder in parts.encoders):
        hint = "freeze it: prototypes, and the projectors of other tasks, are those of the base's encoder"
        return Problem(
            f"{name} belongs to the encoder, which has to stay the base's", str(adapter.path), hint
        )
    return None if _is_in(name, parts.projector) else _no_rule(adapter, name)


def _is_in(name: str, prefix: str) -> bool:
    """Return whether a parameter belongs to a module, which adapters may call by more words, or fewer."""
    return f".{prefix.rpartition('.')[2]}." in f".{name}"


def _no_rule(adapter: Adapter, name: str) -> Problem | None:
    """Return why a part of an adapter is no update B A of a linear map, or None if it is one."""
    part = adapter.parts[name]
    if isinstance(part, LowRankPart) and part.magnitude is None:
        if part.kind == "linear" and not part.kernel and not part.experts:
            return None
        why = "it is no linear map of vectors"
        hint = "train the task on linear maps alone"
    else:
        why = str(adapter.dense_only(name))
        hint = "train the task with factors alone: no use_dora, modules_to_save, bias or trainable tokens"
    return Problem(f"{name} cannot be merged by least squares: {why}", str(adapter.path), hint)
