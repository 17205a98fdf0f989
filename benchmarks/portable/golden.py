"""Small models whose values are made of integers alone: every machine makes the same bytes of them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from submerge.methods import METHODS, Method

__all__ = [
    "ANY_PROCESSOR",
    "DTYPES",
    "SPARSE",
    "data_digest",
    "golden_recipes",
    "make_golden",
    "model_count",
]

ANY_PROCESSOR = {"SUBMERGE_KERNELS": "numba", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
"""The environment in which numba compiles for the oldest processor of the architecture."""
SHAPES = {"embed.weight": (1600, 160), "map.weight": (96, 200), "norm.weight": (96,), "one.weight": (1,)}
"""The first is more than one chunk."""
MODELS = {"base": "F32", "a": "F32", "b": "BF16", "c": "F16"}
"""The number format of each model: all that are read by chunks."""
BITS = {"F32": 20, "BF16": 7, "F16": 10}
"""Bits of the integers that are updates: each format holds them exactly."""
DTYPES = ("float32", "bfloat16", "float16")
"""The number formats of the results."""
OPTIONS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.002},
    "sce": {"select_topk": 0.5},
    "ram": {"epsilon": 0.005},
    "ramplus_tl": {"epsilon": 0.005},
}
SPARSE = {"density": 0.4, "gamma": 0.05, "epsilon": 0.2}
"""Options of all methods that have them."""


def make_golden(folder: Path) -> None:
    """Write the models."""
    for number, (name, code) in enumerate(MODELS.items()):
        header: dict[str, Any] = {}
        data = bytearray()
        for place, (tensor, shape) in enumerate(SHAPES.items()):
            values = _values(math.prod(shape), 100 * number + place, BITS[code])
            encoded = _encoded(values, code)
            header[tensor] = {
                "dtype": code,
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(encoded)],
            }
            data += encoded
        text = json.dumps(header).encode()
        (folder / name).mkdir(parents=True)
        path = folder / name / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        (folder / name / "config.json").write_text('{"model_type": "golden"}')


def _values(count: int, seed: int, bits: int) -> npt.NDArray[np.float32]:
    """Return `count` numbers that are integers of `bits` bits and a sign, times a power of two."""
    state = np.arange(count, dtype=np.uint64) + np.uint64(1 + (seed << 32))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)  # of SplitMix64, modulo 2^64
    integers = (state >> np.uint64(63 - bits)).astype(np.int64) - (1 << bits)
    return np.ldexp(integers.astype(np.float32), -bits - 6)


def _encoded(values: npt.NDArray[np.float32], code: str) -> bytes:
    if code == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16}[code]).tobytes()


def golden_recipes(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, number format and recipe of each method that works by chunks."""
    for name, method in METHODS.items():
        if method.matrix is not None:
            continue
        options = {o: value for o, value in SPARSE.items() if method.option(o)} | OPTIONS.get(name, {})
        own = {"parameters": {"weight": 0.4}} if method.option("weight") else {}
        models = [{"model": str(folder / model), **own} for model in "abc"[: model_count(method)]]
        for dtype in DTYPES:
            recipe = {"merge_method": name, "models": models, "parameters": options, "dtype": dtype}
            if name != "passthrough":
                recipe["base_model"] = str(folder / "base")
            yield name, dtype, recipe


def model_count(method: Method) -> int:
    """Return how many models are merged besides a base: three, or as many as the method takes."""
    return 3 if method.max_models is None else method.max_models - method.base_is_model


def data_digest(folder: Path) -> str:
    """Return a digest of a merged model's values, without the header."""
    content = (folder / "model.safetensors").read_bytes()
    return xxhash.xxh3_128_hexdigest(content[8 + int.from_bytes(content[:8], "little") :])
