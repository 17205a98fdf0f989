"""The pass of a task's own model over its inputs: a second moment for each distinct input of linear maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from submerge.algebra import BlockMoment, FactorMoment, Moment
from submerge.calibrate import (
    AttachedAdapters,
    Inputs,
    Pooling,
    SecondMoment,
    TaskPrototypes,
    attached,
    block_size,
    collect,
    describe_inputs,
    folder_names,
    load_backbone,
    read_data,
    shared_inputs,
    task_prototypes,
)
from submerge.continual._passes import Data, Passes
from submerge.continual._stored_task import StoredMap
from submerge.continual._task_model import TaskModel
from submerge.errors import Problem, RequestError, few
from submerge.gating import is_transposed
from submerge.names import layer_of, projector_of
from submerge.store import Adapter, Checkpoint

__all__ = [
    "MeasuredTask",
    "PrototypeOptions",
    "checked_task",
    "identity_moments",
    "measuring_task",
]

ENERGY = 0.999
"""The share of a moment's trace that `lowrank` statistics keep."""


@dataclass(frozen=True)
class PrototypeOptions:
    """How the prototypes of a task's images are made, and whether the task can do without."""

    pooling: Pooling
    count: int
    needed: bool


@dataclass(frozen=True)
class MeasuredTask:
    """A task's moments, each with the first of the linear maps that share its inputs.

    `Continual.add` takes one as data, where the inputs were run elsewhere: on other machines, or by another
    program.

    Attributes:
        inputs: that first map for each one that was measured; all are names of the base's modules.
        moments: is read once, one moment at a time.
        samples: how many inputs were run.
        data: a digest of them as they were encoded.
        prototypes: those of its images, if it has any.
        without: why there are none, if that was not to be expected.
    """

    inputs: Mapping[str, str]
    moments: Iterator[tuple[str, Moment]]
    samples: int
    data: str
    prototypes: TaskPrototypes | None = None
    without: str = ""


@contextmanager
def measuring_task(
    task: TaskModel,
    data: Data,
    statistics: str,
    passes: Passes,
    *,
    everywhere: bool,
    prototypes: PrototypeOptions | None = None,
) -> Iterator[MeasuredTask]:
    """Give the moments of a task, which are measured as they are asked for, and its prototypes.

    The task's own model runs, for each of its inputs without padding, up to the last map that the task
    changes, or with `everywhere` the last linear map of the layers. Prototypes are the encoder's, which no
    task changes: they come from passes that end before the projector.

    Raises `RequestError` where the inputs cannot be read, or an adapter changes what does not run.
    """
    model, inputs = _loaded(task, data, passes)
    described = describe_inputs(inputs)
    projector = _projector(model)
    found = _prototypes(model, inputs, projector, prototypes)
    with _as_trained(model, task) as changed, torch.no_grad():
        modules = [
            name
            for name in (_linear_maps(model) if everywhere else changed)
            if projector is None or not name.startswith(projector)
        ]
        shared = _by_first(shared_inputs(model, inputs[0], modules), modules)
        names = folder_names(str(task.base.path), model, [name for own in shared.values() for name in own])
        yield MeasuredTask(
            {names[name]: names[first] for first, own in shared.items() for name in own},
            (
                (names[first], moment)
                for first, moment in _moments(model, list(shared), inputs, statistics, passes)
            ),
            described["items"],
            described["data"],
            *found,
        )


@contextmanager
def _as_trained(model: nn.Module, task: TaskModel) -> Iterator[list[str]]:
    """Give the linear maps that a task changes, while the model runs as it was trained for the task."""
    if task.adapter is None:
        own = _linear_maps(model)
        names = folder_names(str(task.base.path), model, own)
        yield [name for name in own if names[name] in task.maps]
        return
    with ExitStack() as stack:
        try:
            at = stack.enter_context(attached(model, {"the task": task.adapter}))
        except RequestError:  # perhaps because the model packs maps
            _check_present(model, task, task.adapter)
            raise
        _check_present(model, task, task.adapter)
        stack.enter_context(at.over(torch.ones(1)))
        _check_complete(at, task.adapter)
        yield list(at.down)


def _check_present(model: nn.Module, task: TaskModel, adapter: Adapter) -> None:
    """Raise `RequestError` for maps of an adapter that the base's files have, and the loaded model packs."""
    own = _linear_maps(model)
    present = set(folder_names(str(task.base.path), model, own).values())
    packed = [name for name in task.maps if layer_of(name) is not None and name not in present]
    if packed:
        held = f"which {type(model).__name__} holds packed, so that nothing is measured"
        hint = "train the task without them, or begin a state with --statistics identity"
        raise RequestError(Problem(f"changes {few(packed)}, {held}", str(adapter.path), hint))


def _loaded(task: TaskModel, data: Data, passes: Passes) -> tuple[nn.Module, Inputs]:
    """Return the base, or a whole checkpoint, without its head, and a task's inputs in batches.

    The base's processor encodes them, where no other is given.
    """
    whole = task.model if task.adapter is None else task.base
    model = load_backbone(whole.path).to(passes.device).eval()
    model.name_or_path = str(task.base.path)  # type: ignore[assignment] # of transformers' models
    encoding = {
        "processor": passes.processor,
        "batch_size": passes.batch_size,
        "max_length": passes.max_length,
        "samples": passes.samples,
    }
    (inputs,) = read_data([data], ["the task"], model, **encoding).values()
    return model, inputs


def _projector(model: nn.Module) -> str | None:
    return projector_of({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


def _prototypes(
    model: nn.Module, inputs: Inputs, projector: str | None, options: PrototypeOptions | None
) -> tuple[TaskPrototypes | None, str]:
    """Return the prototypes of a task's images, and why there are none where the base has a projector.

    Raises `RequestError` where there are none, and they are needed.
    """
    if projector is None or options is None:
        return None, ""
    how: dict[str, Any] = {"pooling": options.pooling, "count": options.count}
    try:
        return task_prototypes(model, inputs, projector, **how, text=True, vectors=True), ""
    except RequestError as error:
        if options.needed:
            raise
        return None, error.problems[0].what


def _check_complete(at: AttachedAdapters, adapter: Adapter) -> None:
    """Raise `RequestError` for what of an adapter the model has no place for, or cannot run."""
    (left_out,), (unsupported,) = at.left_out, at.unsupported
    hint = "train the task on the linear maps of the layers alone"
    problems = [Problem(why, path, hint) for path, why in unsupported.items()]
    if left_out:
        what = f"changes {few(left_out)}, whose inputs are not measured: the model runs without its head"
        problems.append(Problem(what, str(adapter.path), hint))
    if problems:
        raise RequestError(problems)


def _by_first(shared: Mapping[str, list[str]], modules: Sequence[str]) -> dict[str, list[str]]:
    """Return modules by the first with their inputs; one that the first batch does not reach is alone."""
    reached = {name for names in shared.values() for name in names}
    return {**shared, **{name: [name] for name in modules if name not in reached}}


def _linear_maps(model: nn.Module) -> list[str]:
    """Return all linear maps in a model's layers."""
    maps = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) or is_transposed(m))
    return [name for name, _ in maps if layer_of(name) is not None]


def _moments(
    model: nn.Module, modules: Sequence[str], inputs: Inputs, statistics: str, passes: Passes
) -> Iterator[tuple[str, Moment]]:
    """Yield the moments of modules' inputs, in as many passes as their room asks for."""
    groups = list(_groups(model, modules, statistics, passes.room))
    for number, group in enumerate(groups):
        done = number * len(inputs)
        kind = "full" if statistics == "lowrank" else statistics
        widths = {name: _width(model.get_submodule(name)) for name in group}
        reducers = {name: SecondMoment(width, kind, dtype=_dtype(model)) for name, width in widths.items()}

        def progress(batch: int, done: int = done) -> None:
            if passes.progress is not None:
                passes.progress(done + batch, len(groups) * len(inputs))

        collect(model, inputs, reducers, progress=progress)
        for name in group:
            moment = reducers.pop(name).moment
            yield name, moment.truncated(ENERGY) if statistics == "lowrank" else moment


def _groups(model: nn.Module, modules: Sequence[str], statistics: str, room: int) -> Iterator[list[str]]:
    """Yield runs of modules whose moments take no more than `room` bytes, or a single one."""
    group: list[str] = []
    used = 0
    for name in modules:
        width = _width(model.get_submodule(name))
        need = _dtype(model).itemsize * moment_numbers(width, statistics)
        if group and used + need > room:
            yield group
            group, used = [], 0
        group.append(name)
        used += need
    yield group


def moment_numbers(width: int, statistics: str) -> int:
    """Return how many numbers are summed of n inputs."""
    per_input = {"diag": 1.0, "block": block_size(width)}
    return round(width * per_input.get(statistics, (width + 1) / 2))


def _dtype(model: nn.Module) -> torch.dtype:
    """Return what moments are summed and kept in: float32, or that of a model in float64.

    The inputs of a model in float32 are no more exact than that, those of one in bfloat16 much less.
    """
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def _width(module: nn.Module) -> int:
    """Return how many inputs a linear map has."""
    weight = module.get_parameter("weight")
    return weight.shape[0] if is_transposed(module) else weight.shape[1]


def identity_moments(
    task: TaskModel, data: Data, passes: Passes, prototypes: PrototypeOptions | None
) -> MeasuredTask:
    """Return moments that need no inputs, those of the identity, and the prototypes of data, if any."""
    widths = _widths(task.base, task.maps)
    moments = ((name, FactorMoment.identity(width, 1)) for name, width in widths.items())
    measured = MeasuredTask({name: name for name in task.maps}, moments, 0, "")
    if prototypes is None or data is None:
        return measured
    model, inputs = _loaded(task, data, passes)
    found, without = _prototypes(model, inputs, _projector(model), prototypes)
    return replace(measured, prototypes=found, without=without)


def checked_task(
    task: MeasuredTask, base: Checkpoint, maps: Mapping[str, StoredMap], statistics: str
) -> MeasuredTask:
    """Return a task that was measured elsewhere, whose moments are looked at as they are asked for.

    Raises `RequestError`, now or then, where a map has no moment, or one of another kind or width.
    """
    if absent := sorted(set(maps) - set(task.inputs)):
        hint = "give moments of the inputs of all maps that the adapter changes"
        raise RequestError(Problem(f"nothing was measured of {few(absent)}", "data", hint))
    widths = {task.inputs[name]: width for name, width in _widths(base, maps).items()}

    def moments() -> Iterator[tuple[str, Moment]]:
        left = set(task.inputs.values())
        for name, moment in task.moments:
            if name not in left:
                what = f"there is a moment of {name}, which is no distinct input, or has one already"
                raise RequestError(Problem(what, "data", "give one moment of each distinct input"))
            found = f"a {_form(moment)} one of {moment.width} inputs"
            width = widths.get(name, moment.width)
            if found != (wanted := f"a {_wanted(width, statistics)} one of {width} inputs"):
                what = f"the moment of {name} is {found}"
                raise RequestError(Problem(what, "data", f"give {wanted}"))
            left.remove(name)
            yield name, moment
        if left:
            raise RequestError(Problem(f"there are no moments of {few(sorted(left))}", "data", "give all"))

    return replace(task, moments=moments())


def _form(moment: Moment) -> str:
    """Return what kind of a moment one is, and of blocks how large they are."""
    if isinstance(moment, BlockMoment) and moment.kind == "block":
        return f"block (of {moment.sum.shape[1]})"
    return moment.kind


def _wanted(width: int, statistics: str) -> str:
    """Return the same of what a state has of n inputs: blocks are all of it where one has them all."""
    if statistics != "block":
        return statistics
    size = block_size(width)
    return "full" if size == width else "diag" if size == 1 else f"block (of {size})"


def _widths(base: Checkpoint, maps: Mapping[str, StoredMap]) -> dict[str, int]:
    """Return how many inputs each of a base's linear maps has."""
    shapes = {name: base.tensors[f"{name}.weight"].shape for name in maps}
    return {name: shapes[name][0 if stored.transposed else 1] for name, stored in maps.items()}
