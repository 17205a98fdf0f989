"""Files of what a pass over one task's data gave: tensors, and in the metadata what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.errors import Problem, RequestError, WorkError
from submerge.store.format import whole_file

if TYPE_CHECKING:
    import torch

__all__ = ["other_file", "read_content", "write_task_file"]


def read_content(path: Path, form: str, what: str) -> Any:
    """Return what the metadata of a file say under the name of its form.

    `what` is what the file holds, such as `second moments`. Raises `RequestError` where the file is
    missing, or another.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[form])
    except FileNotFoundError:
        hint = "merge with 'data', which writes it, or name the folder that has it"
        missing = f"there is no such file of {what.rpartition(' ')[2]}"
        raise RequestError(Problem(missing, str(path), hint)) from None
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise other_file(path, what, error) from error


def other_file(path: Path, what: str, error: Exception) -> RequestError:
    """Return the error that a file is none of those that hold `what`."""
    why = str(error) or type(error).__name__
    return RequestError(Problem(f"is no file of {what} ({why})", str(path), "collect them again"))


def write_task_file(
    path: Path, tensors: Mapping[str, torch.Tensor], form: str, content: Mapping[str, Any], what: str
) -> None:
    """Write tensors and their description; all of the file or nothing.

    Raises `WorkError` where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            save_file(stored, unfinished, {form: json.dumps(content, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "free some space, or choose a folder on another disk"
        raise WorkError(f"{path}: writing the {what} failed ({reason}) — {hint}") from error
