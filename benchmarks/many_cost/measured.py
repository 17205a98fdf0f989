"""`python -m benchmarks.many_cost.measured`: one step on a state, in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.many_cost.subject import GrowingState
from submerge import Continual

__all__ = ["STEPS"]

STEPS = ("add first", "add second", "export", "remove first")


def main() -> None:
    """Take a step, and write what it took inside of the process, and what the state holds after it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keep", required=True)
    parser.add_argument("--size", required=True)
    for name in ("blocks", "tokens", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = GrowingState(options.size, options.blocks, options.tokens)
    started = time.process_time()
    facts = _taken(options.step, subject, options.folder, options.keep)
    facts["cpu_inside"] = time.process_time() - started
    print(json.dumps(facts))


def _taken(step: str, subject: GrowingState, folder: Path, keep: str) -> dict[str, object]:
    if step == "add first":
        state = Continual.begin(folder / "state", str(folder / "base"), keep=keep)
    else:
        state = Continual(folder / "state")
    warnings: list[str] = []
    if step.startswith("add"):
        number = len(state.tasks)
        task = subject.task(number)
        warnings = state.add(f"task-{number}", str(folder / f"adapter-{number}"), task)
    elif step == "export":
        state.export(folder / "merged")
    elif keep == "full":
        state.remove("task-0")
    else:
        state.remove("task-0", model=str(folder / "adapter-0"), data=subject.task(0))
    status = state.status()
    tasks = [{"bytes": one.bytes, "moments": one.moment_bytes} for one in status.manifest.tasks]
    running = status.manifest.running
    return {"warnings": warnings, "tasks": tasks, "running": running.bytes if running else 0}


if __name__ == "__main__":
    main()
