"""Pickled weights, read only when allowed and only with PyTorch's restricted unpickler."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.deferred import torch
from submerge.errors import Problem, RequestError, few, first_line
from submerge.store.format._dtypes import dtype_named
from submerge.store.format._header import TensorEntry

__all__ = ["load_pickled", "memory_entry"]

_CONVERT = "convert it to safetensors in the program that wrote it"


def load_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickled state dict, mapped from the file where its format allows.

    Raises `RequestError` naming the class if the pickle wants anything but tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():  # old formats warn about storages; nothing the user can change
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise RequestError(_refused(path, error)) from None
    except OSError as error:
        raise RequestError(Problem(f"cannot be read ({error.strerror})", str(path))) from None
    except Exception as error:  # damaged files end in any of a dozen exception types
        what = f"is not a readable PyTorch file ({type(error).__name__}: {first_line(error)})"
        raise RequestError(Problem(what, str(path), "copy or download it again")) from None
    return _state(path, loaded)


def _refused(path: Path, error: pickle.UnpicklingError) -> Problem:
    name = re.search(r"(?:GLOBAL|global|class|function)\s+`?([A-Za-z_][\w]*(?:\.[\w<>]+)+)", str(error))
    if name is None:
        return Problem(f"is not a readable PyTorch file ({first_line(error)})", str(path), _CONVERT)
    what = f"its pickle wants the class {name[1]}, which could run code; only tensors are allowed"
    return Problem(what, str(path), _CONVERT)


def _state(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise RequestError(Problem(f"holds a {type(loaded).__name__}, not a state dict", str(path), _CONVERT))
    others = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others or not all(isinstance(name, str) for name in loaded):
        what = f"holds entries that are not tensors ({few(others)})"
        raise RequestError(Problem(what, str(path), "save the state dict alone: model.state_dict()"))
    problems = [
        Problem("is not a plain dense tensor", f"{path}, tensor {name}", _CONVERT)
        for name, tensor in loaded.items()
        if tensor.layout is not torch.strided or tensor.is_quantized or dtype_named(tensor.dtype) is None
    ]
    if problems:
        raise RequestError(problems)
    return {name: tensor.detach() for name, tensor in loaded.items()}


def memory_entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    """Return the entry of a tensor that lies in memory: no file, offset 0."""
    code = dtype_named(tensor.dtype)
    if code is None:
        raise ValueError(f"tensor {name} has the type {tensor.dtype}, which safetensors does not know")
    return TensorEntry.in_memory(name, code, tuple(tensor.shape))
