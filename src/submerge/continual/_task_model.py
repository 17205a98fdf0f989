"""A task's model, by an adapter or whole: least squares merge one part of it, and CPM keeps another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from submerge.continual._stored_task import StoredMap, TaskLayout, map_of
from submerge.continual._whole_model import changed_tensors, linear_maps, read_values
from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few
from submerge.names import MultimodalParts, module_names, multimodal_parts
from submerge.store import (
    Adapter,
    Checkpoint,
    FileTable,
    LowRankPart,
    digest,
    file_digest,
    joined,
    lay_over,
    open_model,
)
from submerge.store.adapter import task_type_of

__all__ = ["TaskModel", "open_task_model"]


@dataclass(frozen=True)
class TaskModel:
    """A task's model: an adapter of the base, or a whole checkpoint that was tuned from it.

    Attributes:
        base: the base that was tuned.
        model: the tuned model, by the base's names: the base with the adapter, or the checkpoint.
        parts: where the base has its encoders and its projector; None of a model without.
        maps: the linear maps that the task changes, but for those of the projector.
        adapter: as its files have it; None of a whole checkpoint.
        updates: what the adapter does to `maps`, by the base's names.
        others: the tensors of a whole checkpoint that differ from the base's, and are neither maps nor of
            the projector: norms, biases, embeddings, heads.
        notes: what is to be said of the classes of a whole checkpoint.
    """

    base: Checkpoint
    model: Checkpoint
    parts: MultimodalParts | None
    maps: Mapping[str, StoredMap]
    adapter: Adapter | None = None
    updates: Adapter | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the files of the adapter and of its scales, or of the files of the checkpoint."""
        if self.adapter is None:
            return joined(list(map(file_digest, self.model.files)))
        scales = json.dumps(self.adapter.scales, sort_keys=True)
        return joined([self.adapter.digest(), digest(scales.encode())])

    def is_as(self, recorded: str) -> bool:
        """Return whether a digest that was recorded is this model's; earlier versions left out the scales."""
        return recorded in (self.digest, self.adapter.digest() if self.adapter else self.digest)

    @property
    def rank(self) -> int:
        """The largest rank of the updates; 0 of a whole checkpoint, of which none is told."""
        return self.updates.rank if self.updates else 0

    def layout(self, inputs: Mapping[str, str]) -> TaskLayout:
        """Return what the task's file is to hold: the maps whose inputs were measured."""
        task_type = self.adapter.config.get("task_type") if self.adapter else self._task_type()
        measured = {name: stored for name, stored in self.maps.items() if name in inputs}
        return TaskLayout(measured, inputs, str(task_type) if task_type else None)

    def _task_type(self) -> str | None:
        """Return PEFT's type of an adapter of the base, as the base's architecture says."""
        config = self.base.config or {}
        return task_type_of(str((config.get("architectures") or [""])[0]), config)

    def unmeasured(self, layout: TaskLayout) -> tuple[str, ...]:
        """Return the tensors that differ, and are not among the maps of a layout."""
        return (*self.others, *(f"{name}.weight" for name in self.maps if name not in layout.maps))

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


def open_task_model(spec: str, base: Checkpoint) -> TaskModel:
    """Return a task's model: what an adapter makes of the base, or a checkpoint of the base's architecture.

    Raises `RequestError` where it does not fit the base, changes the encoder, or where an adapter changes
    what least squares over linear maps have no rule for.
    """
    model = open_model(spec, root=Path.cwd())
    parts = multimodal_parts(base.shapes)
    if isinstance(model, Adapter):
        task = _adapted(model, spec, base, parts)
    else:
        task = _whole(model, spec, base, parts)
    if not task.maps:
        what = "changes no linear map of the language model: there is nothing to merge by least squares"
        raise RequestError(Problem(what, spec, "train the task on these, too"))
    return task


def _adapted(adapter: Adapter, spec: str, base: Checkpoint, parts: MultimodalParts | None) -> TaskModel:
    """Return the model that an adapter makes of the base."""
    if problems := [p for name in adapter.parts if (p := _refusal(adapter, name, parts)) is not None]:
        raise RequestError(problems[:3])
    model = lay_over(base, adapter, spec, module_names(base.config, base.tensors))
    fitted = model.adapter
    assert fitted is not None
    if fitted.folded:
        what = f"was trained on other values of {few(fitted.folded)} than the base's, which it saved besides"
        raise RequestError(
            Problem(what, str(adapter.path), "begin a state on the base that it was trained on")
        )
    own = {name: part for name, part in fitted.parts.items() if parts is None or not parts.in_projector(name)}
    if packed := [
        name for name, part in own.items() if isinstance(part, LowRankPart) and len(part.stored) > 2
    ]:
        what = f"changes single experts, which the base packs: {few(packed)}"
        hint = "begin a state on the base with experts apart, or train the task on other linear maps"
        raise RequestError(Problem(what, str(adapter.path), hint))
    updates = replace(fitted, parts=own)
    return TaskModel(base, model, parts, map_of(updates), adapter, updates)


def _whole(checkpoint: Checkpoint, spec: str, base: Checkpoint, parts: MultimodalParts | None) -> TaskModel:
    """Return a model that was tuned whole, with what of it differs from the base."""
    aligned, changed = changed_tensors(checkpoint, base)
    if encoder := [name for name in changed if parts is not None and parts.in_encoder(name)]:
        raise RequestError(_of_encoder(few(encoder), spec))
    own = [name for name in changed if parts is None or not parts.in_projector(name)]
    maps = linear_maps(own, base)
    others = tuple(name for name in own if name.removesuffix(".weight") not in maps)
    return TaskModel(base, aligned.model, parts, maps, others=others, notes=tuple(aligned.notes))


def _refusal(adapter: Adapter, name: str, parts: MultimodalParts | None) -> Problem | None:
    """Return why what an adapter does to a parameter cannot be taken into a state, or None if it can."""
    if parts is None:
        return _no_rule(adapter, name)
    if any(_is_in(name, encoder) for encoder in parts.encoders):
        return _of_encoder(name, str(adapter.path))
    return None if _is_in(name, parts.projector) else _no_rule(adapter, name)


def _of_encoder(name: str, where: str) -> Problem:
    hint = "freeze it: prototypes, and the projectors of other tasks, are those of the base's encoder"
    return Problem(f"{name} belongs to the encoder, which has to stay the base's", where, hint)


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
