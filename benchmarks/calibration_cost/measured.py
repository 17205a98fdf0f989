"""`python -m benchmarks.calibration_cost.measured`: one way on one model, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import submerge
from benchmarks.calibration_cost.plain import PlainCalibration
from benchmarks.calibration_cost.subjects import SUBJECTS, Subject
from submerge.calibrate import attached, choose_hooks
from submerge.process import peak_resident
from submerge.store import open_adapter

RATE = 1e-3


def main() -> None:
    """Measure, and write a JSON file: losses, seconds a step, bytes before the first step and at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("way", choices=("submerge", "plain"))
    parser.add_argument("--folder", type=Path, required=True, help="of the adapters")
    parser.add_argument("--size", type=int, required=True, help="of a batch")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = SUBJECTS[options.subject]
    model, adapters = subject.model(), subject.adapters(options.folder)
    run = _submerge if options.way == "submerge" else _plain
    before = _start_of_peak()
    results = run(subject, model, adapters, options.size, options.steps)
    results |= {"before": before, "peak": peak_resident()}
    (options.folder / f"{options.way}.json").write_text(json.dumps(results))


def _submerge(subject: Subject, model: Any, adapters: list[Path], size: int, steps: int) -> dict[str, Any]:
    data = [[batch] for batch in subject.batches(size)]
    names = {f"adapter-{k}": folder for k, folder in enumerate(adapters)}
    found = submerge.learn_coefficients(
        model, names, data, steps=steps, learning_rate=RATE, where_rising="learn"
    )
    return {"seconds": found.seconds_per_step, "loss": list(found.loss[:steps])}


def _plain(subject: Subject, model: Any, adapters: list[Path], size: int, steps: int) -> dict[str, Any]:
    with attached(model, {"0": open_adapter(str(adapters[0]))}) as one:
        hooked = choose_hooks(model, list(one.down), "last_quarter")
    plain = PlainCalibration(model, adapters, hooked, RATE)
    batches, losses, seconds = subject.batches(size), [], []
    with torch.no_grad():
        plain.omega(0, batches[0])  # warms up
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(plain.step(batches))
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.fmean(seconds), "loss": losses}


def _start_of_peak() -> int:
    """Return the resident bytes now, from which the process' peak counts from now on, where Linux allows."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_resident()


if __name__ == "__main__":
    main()
