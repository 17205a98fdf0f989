"""The second moments of a task's inputs in the model that was tuned for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from submerge.algebra import LayerKind, Moment
from submerge.calibrate._applied import with_adapter
from submerge.calibrate._collect import ModelInputs
from submerge.calibrate._layer_inputs import LayerInput, LayerMoment, layer_input
from submerge.calibrate._measurement import BatchCounter, Progress
from submerge.calibrate._reducers import MomentReducer
from submerge.calibrate._second_moments import collected_moments, first_of_shared
from submerge.calibrate._sources import load_backbone, read_data
from submerge.device import check_device
from submerge.names import empty_model, module_names
from submerge.recipe import DataSource
from submerge.store import Adapter, Checkpoint

__all__ = ["TaskMoments", "task_moments"]


@dataclass(frozen=True)
class TaskMoments:
    """The moments of a task's inputs by layer, and the kinds of the layers, by the reference's names."""

    moments: Mapping[str, Moment]
    kinds: Mapping[str, LayerKind]


def task_moments(
    tuned: Checkpoint,
    adapter: Adapter | None,
    data: DataSource,
    reference: Checkpoint,
    tensors: Sequence[str],
    *,
    statistics: str,
    batch_size: int,
    max_length: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TaskMoments:
    """Return the second moments of the inputs that a task's own model has on the task's data, by layer.

    They are summed in float32, half of what float64 takes: 11 GB of full moments for a model of 7 billion
    parameters.

    Args:
        tuned: the model: a fine-tune, or what the adapter lies on.
        adapter: attached to it as it was trained, or where that cannot be, as with DoRA, applied to its
            weights; None for a fine-tune.
        data: unlabelled inputs of the task.
        reference: the model that gives the tensors their names.
        tensors: the parameters that are going to be merged, by the reference's names. Where both a weight
            and a bias are among them, the layer's moment has a constant 1; with `full` statistics alone if
            the layer is a linear map. Those of other modules than `layer_input` knows have no moments.
        statistics: the kind of the moments of linear maps.
        batch_size: inputs in a pass.
        max_length: how many tokens a text has at most.
        device: where the model runs: with its head where a tensor of the head is to be merged.
        progress: called after each batch with the batches so far, and all that there are.

    Raises:
        RequestError: the model cannot be loaded, the adapter does not fit it, or the data cannot be read.
    """
    device = check_device(device, "device")
    names = module_names(reference.config, reference.tensors)
    current = {name: names.get(name, name) for name in tensors}
    model = load_backbone(tuned.path, head=_head(tuned, reference, current.values())).to(device)
    sizes = {"batch_size": batch_size, "max_length": max_length}
    (inputs,) = read_data([data], ["the task"], model, processor=None, **sizes).values()
    layers = _layers(model, current)
    with with_adapter(model, adapter):
        by_path = {layer.path: layer for layer in layers.values()}
        counter = BatchCounter(progress, len(inputs))
        moments = _moments(model, inputs, by_path, statistics, counter)
    return TaskMoments(
        {name: moments[layer.path] for name, layer in layers.items()},
        {name: layer.input.kind for name, layer in layers.items()},
    )


@dataclass(frozen=True)
class _Layer:
    """A layer with parameters to merge: where it is in the model, and which of its parameters these are."""

    path: str
    input: LayerInput
    parameters: Collection[str]

    def is_joint(self, statistics: str) -> bool:
        """Return whether its moment is to have a constant 1."""
        both = {"weight", "bias"} <= set(self.parameters)
        return both and (self.input.kind == "norm" or statistics == "full")


def _moments(
    model: nn.Module,
    inputs: Sequence[ModelInputs],
    layers: Mapping[str, _Layer],
    statistics: str,
    progress: BatchCounter,
) -> dict[str, Moment]:
    """Return the moments of layers by their paths: those of one input have one, with a 1 if any needs it."""
    maps = [path for path, layer in layers.items() if layer.input.rows is None]
    first_of = {path: path for path in layers} | first_of_shared(model, inputs[0], maps)
    joint = {first_of[path] for path, layer in layers.items() if layer.is_joint(statistics)}
    reducers: dict[str, MomentReducer] = {
        first: LayerMoment(layers[first].input, statistics, joint=first in joint, dtype=torch.float32)
        for first in dict.fromkeys(first_of.values())
    }
    moments = collected_moments(model, inputs, reducers, progress)
    return {path: moments[first] for path, first in first_of.items()}


def _layers(model: nn.Module, names: Mapping[str, str]) -> dict[str, _Layer]:
    """Return the layers of tensors, by the reference's names of the layers; `names` are those of today.

    A model without its head lacks the first words of the names, as `layers.0` for `model.layers.0`.
    """
    modules = dict(model.named_modules())
    parameters: dict[tuple[str, str], list[str]] = {}
    for name, current in names.items():
        layer, _, parameter = current.rpartition(".")
        parameters.setdefault((name.rpartition(".")[0], layer), []).append(parameter)
    layers = {}
    for (name, full), own in parameters.items():
        path = next((path for path in _ends(full) if path in modules), None)
        if path and "weight" in own and (made := layer_input(modules[path])) is not None:
            layers[name] = _Layer(path, made, own)
    return layers


def _ends(name: str) -> Iterable[str]:
    """Yield a dotted name, and what is left of it without its first words, the longest first."""
    words = name.split(".")
    return (".".join(words[start:]) for start in range(len(words)))


def _head(tuned: Checkpoint, reference: Checkpoint, names: Iterable[str]) -> str | None:
    """Return the class of a model with its head, where a tensor of the head is a layer's.

    None where the tuned model is of another class, or nothing is outside of the model without a head.
    """
    config = reference.config or {}
    model = empty_model(config)
    if model is None or (tuned.config or {}).get("architectures") != config.get("architectures"):
        return None
    prefix = f"{model.base_model_prefix}."
    outside = (name.rpartition(".")[0] for name in names if not name.startswith(prefix))
    modules = dict(model.named_modules())
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm)
    return type(model).__name__ if any(isinstance(modules.get(path), kinds) for path in outside) else None
