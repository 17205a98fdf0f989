"""The numbers of one method, as the page shows them, and the bars that they are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.bench import median
from benchmarks.speed.recipes import METHODS

__all__ = ["BARRED", "BARRED_SIZE", "Bar", "Row", "rows"]

BARRED, BARRED_SIZE = "3-bfloat16", "1.1b"
"""The part of the results that the bars of time and memory are for, and the size of its models."""
RATIOS = {
    "linear": 6,
    "task_arithmetic": 6,
    "model_stock": 6,
    "slerp": 15,
    "karcher": 15,
    "dare_ties": 20,
    "breadcrumbs": 20,
    "ties": 40,
    "sce": 40,
}
"""How many times as long mergekit takes, at least."""
FLOORS = {"della": 3.0}
"""How many floors of one pass a method's own time may be, where its passes do not decide it."""
ONE_PASS, MORE_PASSES = 1.4, 2.2
PEAK_GB = 0.3
AGREEMENT = {"bfloat16": 0.95, "float32": 0.99}
"""The share of values that mergekit has, too, at least. In 16 bits it computes in 16 bits."""
ITEM_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Bar:
    """What a number must be: at most the bound, or at least, with `least`."""

    bound: float
    least: bool = False

    def met(self, value: float) -> bool:
        """Return whether a number is as it must be."""
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """The medians of a method's runs with models of one format; None where something was not measured.

    `inside` is the time of the merge without the start of Python, `floor` that of reading the inputs once
    and writing the output, `own_floor` that of reading them in each of the method's passes. `reads` is
    how often the inputs were really read. `digests` are those of as many outputs as were `compared`;
    `agreement` is the share of values that are mergekit's, too.
    """

    method: str
    dtype: str
    inputs: int
    passes: int
    theirs: float | None
    ours: float | None
    inside: float | None
    floor: float | None
    own_floor: float | None
    reads: float | None
    cpu: float | None
    cpu_ns: float | None
    peak_gb: float | None
    private_gb: float | None
    their_peak_gb: float | None
    digests: int
    compared: int
    agreement: float | None
    draws: bool

    @property
    def ratio(self) -> float | None:
        """How many times as long mergekit takes."""
        return _over(self.theirs, self.ours)

    @property
    def over_floor(self) -> float | None:
        """The time inside in floors of one pass."""
        return _over(self.inside, self.floor)

    @property
    def over_own_floor(self) -> float | None:
        """The time inside in floors of as many passes as the method has."""
        return _over(self.inside, self.own_floor)

    @property
    def agrees(self) -> Bar:
        """What `agreement` must be."""
        return Bar(AGREEMENT[self.dtype], least=True)

    def bars(self) -> dict[str, Bar]:
        """Return the name of a number -> what it must be."""
        by_passes = ONE_PASS if self.passes == 1 else MORE_PASSES
        bars = {"over_floor": Bar(FLOORS.get(self.method, by_passes)), "peak_gb": Bar(PEAK_GB)}
        if self.method in RATIOS:
            bars["ratio"] = Bar(RATIOS[self.method], least=True)
        return bars


def rows(results: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the row of each method of a part."""
    measured = part["methods"]
    for method in sorted(measured, key=list(METHODS).index):
        result = measured[method]
        ours, theirs = result.get("submerge"), result.get("mergekit")
        inputs, passes = result["inputs"], result["passes"]
        floors = part["floors"].get(str(inputs), {})
        one, two = (median(floors.get(number), "seconds_inside") for number in ("1", "2"))
        cpu = median(ours, "cpu_seconds")
        input_bytes = inputs * results["parameters"] * ITEM_BYTES[part["dtype"]]
        yield Row(
            method=method,
            dtype=part["dtype"],
            inputs=inputs,
            passes=passes,
            theirs=median(theirs),
            ours=median(ours),
            inside=median(ours, "seconds_inside"),
            floor=one,
            own_floor=one if passes == 1 or one is None or two is None else one + (passes - 1) * (two - one),
            reads=_over(median(ours, "bytes_read"), input_bytes),
            cpu=cpu,
            cpu_ns=_over(cpu, results["parameters"] / 1e9),
            peak_gb=_over(median(ours, "peak_bytes"), 1e9),
            private_gb=_over(median(ours, "private_bytes"), 1e9),
            their_peak_gb=_over(median(theirs, "peak_bytes"), 1e9),
            digests=len(ours["digests"]) if ours else 0,
            compared=ours["compared"] if ours else 0,
            agreement=ours.get("agreement") if ours else None,
            draws=result["draws"],
        )


def _over(value: float | None, unit: float | None) -> float | None:
    return None if value is None or not unit else value / unit
