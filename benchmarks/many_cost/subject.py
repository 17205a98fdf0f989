"""The base, the adapters and the inputs: of real sizes, with values that are noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.adapters.models import SIZES, make_adapters, modules
from benchmarks.speed.models import Shape
from submerge.algebra import Moment
from submerge.calibrate import SecondMoment
from submerge.continual import MeasuredTask
from submerge.store import encode_header

__all__ = ["TASKS", "GrowingState"]

TASKS = 2
RANK, BATCH = 16, 1024
OUTLIER = 1e3
"""A few channels of a language model's inputs are larger than the others by such a factor."""
SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""The map whose input each of these has, too."""


@dataclass(frozen=True)
class GrowingState:
    """A base of a size, cut to some blocks, tasks that adapt all of its linear maps, and tokens of each."""

    size: str
    blocks: int
    tokens: int

    @property
    def shape(self) -> Shape:
        return replace(SIZES[self.size], layers=self.blocks)

    def make(self, folder: Path, say: Callable[[str], None]) -> None:
        """Write the base, whose values are holes in its file, and the adapters."""
        base = folder / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text(json.dumps(self.shape.config()))
        specs = [(name, "BF16", dims) for name, dims in self.shape.tensors().items()]
        header, offsets = encode_header(specs)
        with (base / "model.safetensors").open("wb") as file:
            file.write(header)
            last, _, dims = specs[-1]
            file.truncate(offsets[last] + 2 * dims[0] * dims[1])
        make_adapters(folder, self.shape, TASKS, RANK, say)

    def task(self, number: int) -> MeasuredTask:
        """Return a task whose inputs are noise, in bfloat16, with outliers."""
        names = {name: _first(name) for name in modules(self.shape)}
        return MeasuredTask(names, self._moments(number), self.tokens, f"noise {number}")

    def _moments(self, number: int) -> Iterator[tuple[str, Moment]]:
        maps = modules(self.shape)
        rows = {width: self._rows(width, number) for width in {n for _, n in maps.values()}}
        for block, name in enumerate(name for name in maps if _first(name) == name):
            width = maps[name][1]
            reducer = SecondMoment(width, dtype=torch.float32)
            for batch in rows[width].split(BATCH):
                reducer.update(batch.roll(block, 1))
            yield name, reducer.moment

    def _rows(self, width: int, seed: int) -> torch.Tensor:
        """Return inputs [N, n], of directions that overlap, and three outlier channels."""
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randn(self.tokens, width, generator=draw)
        rows[:, :3] *= OUTLIER
        return rows.bfloat16()


def _first(name: str) -> str:
    """Return the first linear map with the inputs of a map."""
    path, _, local = name.rpartition(".")
    return f"{path}.{SHARED.get(local, local)}"
