"""What a calibration was made of, for its file: digests of adapters and data, and the base's own names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from submerge.calibrate._sources import Inputs
from submerge.calibrate._spaced import count_items
from submerge.errors import RequestError
from submerge.names import View, loading, match_names, module_names
from submerge.process import peak_resident
from submerge.store import Adapter, byte_view, hasher, open_checkpoint

__all__ = ["describe_inputs", "folder_modules", "folder_names", "peak_memory", "record_inputs"]


def record_inputs(adapters: Mapping[str, Adapter], data: Mapping[str, Inputs]) -> dict[str, dict[str, Any]]:
    """Return, by adapter, the digests of its file and of its encoded data, its scales, and how many items.

    The scales are one number where all updates have the same, else one by the name of each in the file.
    """
    return {
        name: {
            "adapter": adapter.digest(),
            "scales": _one_or_all(adapter.scales),
            **describe_inputs(data[name]),
        }
        for name, adapter in adapters.items()
    }


def _one_or_all(scales: Mapping[str, float]) -> float | dict[str, float]:
    distinct = set(scales.values())
    return distinct.pop() if len(distinct) == 1 else dict(scales)


def describe_inputs(batches: Inputs) -> dict[str, Any]:
    """Return the digest of encoded inputs, `data`, and their number, `items`."""
    of_data, items = hasher(), 0
    for batch in batches:
        items += count_items(batch)
        for name, tensor in sorted(batch.items()):
            tensor = torch.as_tensor(tensor).detach().cpu().contiguous()
            of_data.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            of_data.update(byte_view(tensor))
    return {"data": of_data.hexdigest(), "items": items}


def folder_names(folder: str, model: nn.Module, modules: Iterable[str]) -> dict[str, str]:
    """Return what the tensors of a folder call some modules of the model that was loaded from it.

    A model without its head has other names than the files, such as `layers.0` for `model.layers.0`, and
    some files have the names of an earlier transformers.
    """
    checkpoint = open_checkpoint(folder)
    today = module_names(checkpoint.config, checkpoint.tensors)
    stored = {today.get(name, name): name for name in checkpoint.tensors}
    parameters = {path: _a_parameter(model, path) for path in modules}
    matched = match_names(list(parameters.values()), list(stored), folder).names
    return {path: stored[matched[name]].rpartition(".")[0] for path, name in parameters.items()}


def folder_modules(folder: str, model: nn.Module, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what the tensors of a folder call some modules: several names where the model packs these.

    Raises `RequestError` where the folder has none of a module's tensors.
    """
    paths = list(modules)
    try:
        return {path: (name,) for path, name in folder_names(folder, model, paths).items()}
    except RequestError:
        tensors = open_checkpoint(folder).tensors
        views = loading(model, {name: entry.shape for name, entry in tensors.items()}).views
        sources = {path: _sources(model.get_submodule(path), path, views) for path in paths}
        if not all(sources.values()):
            raise
    return {path: tuple(sorted({s.rpartition(".")[0] for s in own})) for path, own in sources.items()}


def _sources(module: nn.Module, path: str, views: Mapping[str, View]) -> set[str]:
    """Return the tensors of a folder that a module's own parameters are made of."""
    own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
    return {source for name in own if name in views for source in views[name].sources}


def _a_parameter(model: nn.Module, path: str) -> str:
    """Return the name of one of a module's own parameters, as the model has it."""
    name, _ = next(model.get_submodule(path).named_parameters(recurse=False))
    return f"{path}.{name}" if path else name


def peak_memory(model: nn.Module) -> int:
    """Return the most bytes that the process has held: of a GPU's memory where the model is on one."""
    device = next(model.parameters()).device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
