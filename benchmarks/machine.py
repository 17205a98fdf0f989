"""Describes the machine and the software that numbers were measured with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

__all__ = ["describe", "same"]

PACKAGES = ("submerge", "numba", "mergekit", "torch", "safetensors", "transformers")
PEERS = ("mergekit", "torch", "safetensors", "transformers")


def describe() -> dict[str, object]:
    """Return processor, cores, memory and versions."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    """Say whether the peer's numbers from `one` hold for `other`: all equal but our own version."""

    def key(machine: dict[str, object]) -> dict[str, object]:
        versions = machine.get("versions")
        assert isinstance(versions, dict)
        return machine | {"versions": {name: versions.get(name) for name in PEERS}}

    return key(one) == key(other)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
