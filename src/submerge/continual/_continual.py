"""A model that grows: tasks are added to a state one at a time, and removed, and their merge is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from submerge.algebra import LpmOptions
from submerge.arguments import checked
from submerge.continual._base import base_record, open_base, opened_base
from submerge.continual._change import NewTask, add_task, remove_task
from submerge.continual._export import Export, ExportReport, write_adapter, write_checkpoint
from submerge.continual._join import join_states
from submerge.continual._lpm import StoredTasks
from submerge.continual._manifest import StateManifest, TaskRecord
from submerge.continual._passes import Data, Passes
from submerge.continual._projectors import ProjectorGate, StoredProjectors
from submerge.continual._requests import (
    check_export,
    check_removal,
    check_tasks,
    check_together,
    export_options,
    gate_settings,
    lpm_options,
    state_options,
)
from submerge.continual._state_folder import StateFolder, new_folder
from submerge.continual._status import StateStatus, status_of
from submerge.continual._weights import checked_weights
from submerge.engine import Settings
from submerge.engine.plan import choose_score
from submerge.store import Checkpoint, FileTable, ProjectorSettings

__all__ = ["Continual"]


class Continual:
    """A state of tasks that are merged by least squares over their inputs (LPM, arXiv 2604.14016, §4.3).

    Each task is a LoRA adapter of one base, Δ_t = B_t A_t, or a whole fine-tune of it, with some of its
    inputs. For each linear map the state holds the second moment C_t = X_tᵀ X_t of what the task's own model
    feeds it, and the merge is

        Ŵ = W + λ (Σ_t Δ_t C_t) (Σ_t C_t)⁻¹,

    of adapters an adapter of rank Σ r_t. It does not depend on the order in which tasks were added, and to
    remove one is the same as never to have added it, to the byte. The state is a folder; every change of it
    is complete or not made at all, and one process changes it at a time.

    Args:
        state: the folder that `Continual.begin` made.

    Raises:
        RequestError: it is no state, or it is damaged.

    Examples:
        >>> import submerge
        >>> for name in ("chat", "code"):
        ...     report = submerge.extract_lora(name, f"{name}-lora", base="base", rank=4)
        >>> import torch
        >>> tokens = [{"input_ids": torch.arange(160).view(8, 20)}]
        >>> state = submerge.Continual.begin("state", "base")
        >>> warnings = state.add("chat", "chat-lora", tokens)
        >>> warnings = state.add("code", "code-lora", tokens)
        >>> state.tasks, state.export("both").rank
        (('chat', 'code'), 8)
        >>> state.remove("chat")
        >>> state.tasks
        ('code',)
    """

    @checked
    def __init__(self, state: str | Path) -> None:
        self._folder = StateFolder(Path(state).absolute())  # the process may go to another folder
        self._folder.read()

    @classmethod
    @checked
    def begin(
        cls,
        state: str | Path,
        base: str | Path,
        *,
        statistics: str = "full",
        keep: str = "full",
        pooling: str = "mean",
        preset: str = "default",
        **lpm: Any,
    ) -> Continual:
        """Return a state without tasks, in a new folder.

        Args:
            state: the folder to make.
            base: the model that all tasks are tuned from, a folder or a Hub id.
            statistics: of each input: `full` second moments, their diagonal `block`s of at most 256 inputs,
                their `diag`onal, `lowrank` ones that hold 99.9 % of the trace, or `identity`, none, with
                which the merge is a mean of the updates and needs no data.
            keep: `full` keeps each task's moments, and removal is exact and needs nothing else; `none`
                keeps their sum alone, which takes less room, and removal needs the task's adapter and data
                again.
            pooling: how images are compared, of tasks whose base has an encoder and a projector: by the
                `mean` of what the projector is given, over positions, or by all `position`s side by side.
            preset: `default` or `paper`: the `scale` and the `energy` to begin with.
            **lpm: options of `submerge.algebra.LpmOptions`. `missing` is `skip` here by default: a task has
                no say in maps that it does not adapt; for `zero` every map of the layers is measured.

        Raises:
            RequestError: the folder is not empty, an option is out of its range, or the base cannot be
                opened.
        """
        options = state_options(statistics=statistics, keep=keep, pooling=pooling)
        chosen = lpm_options(LpmOptions(missing="skip"), preset, lpm)
        check_together(options, chosen)
        record = base_record(opened_base(base))
        with new_folder(Path(state)) as path:
            StateFolder(path).commit(StateManifest(record, options, chosen))
        return cls(state)

    @classmethod
    @checked
    def join(cls, first: str | Path, second: str | Path, state: str | Path) -> Continual:
        """Return a state with the tasks of two, in a new folder.

        Raises `RequestError` where they are of two bases, were begun with other options, or have a task of
        one name.
        """
        join_states(StateFolder(Path(first)), StateFolder(Path(second)), Path(state))
        return cls(state)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return self._folder.read().names

    @checked
    def record(self, task: str) -> TaskRecord:
        """Return what the state says of a task; raise `RequestError` where there is none of this name."""
        return self._folder.read().task(task)

    @checked
    def add(
        self,
        task: str,
        model: str | Path,
        data: Data = None,
        *,
        share_projector: str | None = None,
        prototypes: int = 1,
        base: str | Path | None = None,
        **passes: Any,
    ) -> list[str]:
        """Add a task, and return warnings: too few inputs, images like those of another task, another base.

        Where the base has an encoder and a projector, the task may change the projector, too; an adapter by
        factors or as a whole (`modules_to_save`). The state keeps it, with prototypes of the task's images.

        Of a whole checkpoint the weights of the linear maps that differ from the base's are kept. Other
        tensors that differ (norms, biases, embeddings, heads) are merged as a mean, and a warning counts
        them.

        Args:
            task: its name, of letters, digits, `.`, `-` and `_`.
            model: its LoRA adapter, a folder, a file or a Hub id; or the folder or Hub id of a whole
                checkpoint that was tuned from the base.
            data: its inputs, what `submerge.null_space_ratio` takes as one data set; none for `identity`. Or
                a `MeasuredTask`, where they were run elsewhere.
            share_projector: a task with the same images: the two then have one projector, the mean of theirs.
            prototypes: the most prototypes of its images, which are means of clusters.
            base: where the base is now, if it was moved.
            **passes: `samples` (the most inputs that run, evenly spaced), `batch_size`, `max_length`,
                `device`, `processor`, `room` (bytes that moments take at a time) and `progress` (called with
                batches done, and all).

        Raises:
            RequestError: the name is taken; the model does not fit the base or changes the encoder, or an
                adapter what least squares has no rule for; or the inputs cannot be read. The state is as it
                was.
        """
        new = NewTask(task, str(model), data, Passes.of(passes), base, share_projector, prototypes)
        with self._folder.writing() as manifest:
            changed, warnings = add_task(self._folder, manifest, new)
            self._folder.commit(changed)
        return warnings

    @checked
    def remove(
        self,
        task: str,
        *,
        model: str | Path | None = None,
        data: Data = None,
        base: str | Path | None = None,
        **passes: Any,
    ) -> None:
        """Remove a task: what is exported then is what would be had it never been added.

        A state that keeps moments needs nothing for it, and the bytes are the same. One that does not needs
        the task's `model` and `data` again, as `add` had them, and the values are the same to rounding.

        Where moments are kept, a `model` that is given must be the task's, and its data is not run.

        Raises `RequestError` where there is no such task, or what is needed is missing or another one.
        """
        how = Passes.of(passes)
        again = None if model is None else NewTask(task, str(model), data, how, base)
        with self._folder.writing() as manifest:
            if again is None:
                others = {"data": data, "base": base} | how.given
                check_removal(manifest, [name for name, value in others.items() if value is not None])
            self._folder.commit(remove_task(self._folder, manifest, task, again))

    @checked
    def export(
        self,
        out: str | Path,
        *,
        form: str = "adapter",
        rank: int | None = None,
        preset: str | None = None,
        weights: Mapping[str, float] | None = None,
        projectors: str = "mixed",
        score: str | None = None,
        temperature: float | None = None,
        top: int | None = None,
        key: str | None = None,
        centred: bool = True,
        base: str | Path | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
        settings: Settings | None = None,
        **lpm: Any,
    ) -> ExportReport:
        """Write the merge of all tasks as an adapter in PEFT's form, or the base with it folded in.

        Where tasks have changed the projector, a gate is written beside it, by which `submerge.load` mixes
        the outputs of the projectors for each image, by its similarity to the tasks' prototypes (CPM). The
        checkpoint's own projector is then their mean, and an adapter leaves that of the base in its place.

        Args:
            out: the folder to make.
            form: `adapter` or `checkpoint`.
            rank: the most rank of each update; by default all that the merge has, the sum of the tasks'
                ranks. An adapter needs it where a task is a whole checkpoint.
            preset: `default` or `paper`: its `scale` and `energy` in the place of those with which the state
                was begun.
            weights: factors on the moments of tasks, by name: 1 by default, as `weight` of the recipe's
                `merge_method: many`. A task of weight 0 has no say; its projector stays in the gate.
            projectors: `mixed`, or `merged`: without a gate, with the mean of the projectors.
            score: how images are compared: by a linear `discriminant` of the tasks, which is the default
                where the state has the statistics of all of them, or by `prototypes`.
            temperature: τ of the softmax over the scores, by default 1 of a discriminant and 0.03 of
                prototypes; 0 leaves the nearest projector alone.
            top: the most projectors that the output for an image is mixed of; all by default.
            key: what is compared: the `image`, the `text`, or `both`; by default images, and both where
                images of two tasks overlap much and their questions do not.
            centred: whether the prototypes' common mean is taken away before they are compared.
            base: where the base is now, if it was moved; a checkpoint needs it, a gate, and tasks that are
                whole checkpoints.
            dtype: of a checkpoint, such as `bfloat16`; by default the base's.
            overwrite: replace a folder that is not empty.
            settings: how a checkpoint is written.
            **lpm: options of `submerge.algebra.LpmOptions` over those of the state, such as `scale`. A
                state that keeps no moments has all but `scale` in its sums, and takes no weights.

        Raises:
            RequestError: there are no tasks, an option cannot be changed, or `out` must not be written.
        """
        check_export(form, projectors, dtype, rank)
        self._folder.check_apart(Path(out))
        manifest = self._folder.read()
        given = {"score": score, "temperature": temperature, "top": top, "key": key, "centred": centred}
        gate = gate_settings(manifest, given)
        options = export_options(manifest, preset, lpm)
        other_than_1 = checked_weights(manifest, weights or {})
        check_tasks(manifest, self._folder.path, form, rank)
        with FileTable() as table:
            whole = form == "checkpoint"
            needed = whole or manifest.has_projectors or manifest.has_checkpoints or base is not None
            opened = open_base(manifest.base, base) if needed else None
            if base is not None and opened is not None:  # what is written names the place where it is now
                manifest = replace(manifest, base=base_record(opened))
            mixed = gate if projectors == "mixed" else None
            export = self._export(manifest, options, other_than_1, opened, mixed, table)
            if not whole:
                return write_adapter(export, Path(out), rank=rank, overwrite=overwrite)
            assert opened is not None
            how: dict[str, Any] = {"rank": rank, "overwrite": overwrite, "settings": settings, "dtype": dtype}
            return write_checkpoint(export, Path(out), opened, **how)

    def _export(
        self,
        manifest: StateManifest,
        options: LpmOptions,
        weights: Mapping[str, float],
        base: Checkpoint | None,
        gate: dict[str, Any] | None,
        table: FileTable,
    ) -> Export:
        """Return what is exported; with `gate` its settings, where tasks changed the projector."""
        tasks = StoredTasks(self._folder, manifest, options, table, base, weights)
        export = Export(manifest, options, tasks, weights=weights)
        if not manifest.has_projectors:
            return export
        assert base is not None
        projectors = StoredProjectors(tasks.tasks, base, table)
        export = replace(export, saved=projectors.saved)
        if gate is None or not projectors.are_changed:
            return export
        statistics = [task for group in projectors.statistics for task in group]
        chosen = choose_score(statistics, gate.get("score"), gate.get("key"))
        settings = gate | {"score": chosen.score, "key": chosen.key}
        made = ProjectorGate(projectors, ProjectorSettings(projectors.module, **settings))
        return replace(export, gate=made, warnings=chosen.warnings)

    @checked
    def status(self, *, condition: bool = False) -> StateStatus:
        """Return what the state holds, and with `condition` the condition number of each Φ = Σ C_t."""
        return status_of(self._folder, self._folder.read(), condition=condition)
