"""Where to compute."""

from __future__ import annotations

from submerge.deferred import torch
from submerge.errors import Problem, RequestError

__all__ = ["check_device", "find_device"]


def check_device(name: str | torch.device, where: str = "--device") -> str:
    """Return the name of a torch device, `cpu`, `cuda` or `cuda:N`.

    Raises `RequestError`, with `where` the device was named, if it cannot be used.
    """
    if name == "cpu":  # which needs no torch to be known
        return "cpu"
    device = find_device(name, where)
    if device.type not in ("cpu", "cuda"):
        raise RequestError(Problem(f"{name} is not supported", where, "use cpu or cuda"))
    return "cpu" if device.type == "cpu" else str(device)


def find_device(name: str | torch.device, where: str = "device") -> torch.device:
    """Return a torch device of any kind; raise `RequestError` where there is none of this name."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise RequestError(Problem(f"no such device: {name}", where, "use cpu or cuda")) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(Problem("no CUDA device is available", where, "use cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        what = f"only {torch.cuda.device_count()} CUDA devices are there, numbered from 0"
        raise RequestError(Problem(what, where, f"{name} is none of them"))
    return device
