"""How the parts of a model are loaded, as callers of transformers' `from_pretrained` say it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from submerge.device import find_device
from submerge.errors import Problem, RequestError
from submerge.store import DTYPES, dtype_named

__all__ = ["LoadOptions", "load_options"]

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""The maps of devices that transformers makes itself, by what they are called."""
HOLD: Mapping[str, tuple[bool, ...]] = {
    "local_files_only": (True, False),
    "low_cpu_mem_usage": (True, False),
    "trust_remote_code": (False,),
    "use_safetensors": (True,),
}
"""Options of transformers with the values of which nothing is to be done: it is so, or may be."""
QUANTIZED = 'updates of a gate are added to whole matrices: give dtype="bfloat16" for a smaller model'
REFUSED: Mapping[str, str] = {
    "variant": "a folder with a gate has weights of one name: leave it out",
    "subfolder": "give the path of that folder itself",
    "quantization_config": QUANTIZED,
    "load_in_8bit": QUANTIZED,
    "load_in_4bit": QUANTIZED,
}
"""Options of transformers that a model with a gate does not have, and what to do."""


@dataclass(frozen=True)
class LoadOptions:
    """The device of a model, None for the CPU, and arguments of `from_pretrained` for each of its parts."""

    device: torch.device | None
    arguments: Mapping[str, Any]


def load_options(settings: MutableMapping[str, Any], **given: Any) -> LoadOptions:
    """Return how a model is loaded by `dtype`, `device` and `attn_implementation`, of which any may be None.

    transformers' `torch_dtype` and `device_map` stand for the first two; they are taken out of `settings`, as
    its options are that say what is so.

    Raises:
        RequestError: one thing is said twice; there is no such dtype or device; a map has several devices; or
            an option of transformers is one that a model with a gate does not have.
    """
    for name in [name for name in settings if settings[name] in HOLD.get(name, ())]:
        del settings[name]
    for name, hint in REFUSED.items():
        if settings.pop(name, None):
            raise RequestError(Problem(f"{name} is no option of a model with a gate", "load", hint))
    for name, other in (("dtype", "torch_dtype"), ("device", "device_map")):
        value = settings.pop(other, None)
        if value is not None and given[name] is not None:
            raise RequestError(Problem(f"both {name} and {other} are given", "load", f"give {name} alone"))
        given[name] = value if given[name] is None else given[name]
    arguments = {"dtype": _dtype(given["dtype"]), "attn_implementation": given["attn_implementation"]}
    device = _mapped(given["device"])
    return LoadOptions(
        None if device is None else find_device(device),
        {name: value for name, value in arguments.items() if value is not None},
    )


def _dtype(dtype: Any) -> torch.dtype | None:
    """Return a type of torch by any of its names; None for that of the files."""
    if dtype is None or dtype == "auto":
        return None
    code = dtype_named(dtype) if isinstance(dtype, str | torch.dtype) else None
    found = DTYPES[code].torch if code is not None else None
    if found is None or not found.is_floating_point:
        hint = "give one of torch's, such as bfloat16, or leave it out: that of the folder"
        raise RequestError(Problem(f"there is no dtype {dtype!r} of real numbers", "dtype", hint))
    return found


def _mapped(device: Any) -> Any:
    """Return the one device of a map of devices, of which transformers makes some itself.

    Updates and labels of a gate are on the device of the modules that they act in, which is one for all.
    """
    if isinstance(device, Mapping) and len(set(map(str, device.values()))) == 1:
        device = next(iter(device.values()))
    if isinstance(device, str) and device in SPREAD and torch.cuda.device_count() < 2:
        return "cuda" if torch.cuda.is_available() else None
    if isinstance(device, Mapping) or device in SPREAD:
        what = "a model with a gate is on one device"
        raise RequestError(Problem(what, "device_map", 'give device="cuda:0", or another one'))
    return f"cuda:{device}" if isinstance(device, int) else device
