"""The second moments of a task's inputs in the model that was tuned for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from submerge.algebra import Moment
from submerge.calibrate._attached import attached
from submerge.calibrate._measurement import BatchCounter, Progress
from submerge.calibrate._second_moments import second_moments
from submerge.calibrate._sources import load_backbone, read_data
from submerge.names import module_names
from submerge.recipe import DataSource
from submerge.store import Adapter, Checkpoint

__all__ = ["task_moments"]


def task_moments(
    folder: Path,
    adapter: Adapter | None,
    data: DataSource,
    reference: Checkpoint,
    widths: Mapping[str, int],
    *,
    statistics: str,
    batch_size: int,
    max_length: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Moment]:
    """Return the second moments of the inputs that a task's own model has on the task's data, by module.

    They are summed in float32, half of what float64 takes: 11 GB of full moments for a model of 7 billion
    parameters.

    Args:
        folder: the model: a fine-tune, or what the adapter lies on.
        adapter: attached to it as it was trained; None for a fine-tune.
        data: unlabelled inputs of the task.
        reference: the model that gives the modules their names.
        widths: the number of inputs of each module, by the reference's names without `.weight`. Those that
            are no linear maps of the model as it is loaded, without its head, have no moments.
        statistics: the kind of the moments.
        batch_size: inputs in a pass.
        max_length: how many tokens a text has at most.
        device: where the model runs.
        progress: called after each batch with the batches so far, and all that there are.

    Raises:
        RequestError: the model cannot be loaded, the adapter does not fit it, or the data cannot be read.
    """
    model = load_backbone(folder).to(device)
    sizes = {"batch_size": batch_size, "max_length": max_length}
    (inputs,) = read_data([data], ["the task"], model, processor=None, **sizes).values()
    today = module_names(reference.config, reference.tensors)
    names = {name: today.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight") for name in widths}
    paths = _linear_maps(model, names)
    with ExitStack() as stack:
        if adapter is not None:
            at = stack.enter_context(attached(model, {"task": adapter}))
            stack.enter_context(at.over(torch.ones(1)))
        by_path = {path: widths[name] for name, path in paths.items()}
        counter = BatchCounter(progress, len(inputs))
        moments = second_moments(
            model, inputs, by_path, kind=statistics, dtype=torch.float32, progress=counter
        )
    return {name: moments[path] for name, path in paths.items()}


def _linear_maps(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Return where the linear maps are in the model, by the reference's names of them.

    A model without its head lacks the first words of the names, as `layers.0` for `model.layers.0`.
    """
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name: next((p for p in _ends(full) if p in linear), None) for name, full in names.items()}
    return {name: path for name, path in found.items() if path is not None}


def _ends(name: str) -> Iterable[str]:
    """Yield a dotted name, and what is left of it without its first words, the longest first."""
    words = name.split(".")
    return (".".join(words[start:]) for start in range(len(words)))
