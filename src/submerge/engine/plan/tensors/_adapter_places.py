"""Where an adapter has a place for the update of a matrix, by what transformers makes of it.

PEFT puts factors beside linear maps (`target_modules`), and beside parameters of any other module
(`target_parameters`), as a router's. Neither acts on a map that another module reads without calling it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submerge.names import loadable_model, loaded_names

__all__ = ["AdapterPlaces", "adapter_places"]

# of these models PEFT refuses the modules whose weights are read by kernels
_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_READ_BY_KERNELS = frozenset({"out_proj", "conv1d"})
_PAST = "an adapter has no place for it: another module reads it past its own"


@dataclass(frozen=True)
class AdapterPlaces:
    """Matrices that are parameters of other modules than linear maps, and why others have no place."""

    parameters: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)


def adapter_places(names: Sequence[str], config: Mapping[str, Any] | None) -> AdapterPlaces:
    """Return which matrices of a model an adapter has otherwise than as the weight of a linear map.

    None where transformers is not installed, or does not know the model; matrices that it packs are not
    looked at, for adapters have them as the files do.
    """
    if not names or (model := loadable_model(config)) is None:
        return AdapterPlaces()
    parameters, reasons = set(), {}
    for name, parameter in loaded_names(model, names).items():
        path, _, local = parameter.rpartition(".")
        if _is_read_past(model, path):
            reasons[name] = _PAST
        elif not _is_map(model.get_submodule(path), local):
            parameters.add(name)
    return AdapterPlaces(frozenset(parameters), reasons)


def _is_read_past(model: Any, path: str) -> bool:
    from torch import nn

    parent, _, own = path.rpartition(".")
    by_kernel = own in _READ_BY_KERNELS and getattr(model.config, "model_type", None) in _MAMBA
    return by_kernel or isinstance(model.get_submodule(parent), nn.MultiheadAttention)


def _is_map(module: Any, local: str) -> bool:
    """Return whether a parameter is the weight of a linear map that gives what it computes."""
    from torch import nn

    from submerge.gating import is_transposed  # here: it loads torch

    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return local == "weight" and (plain or is_transposed(module))
