"""Teaches one small multimodal model three tasks, one after another, and shows what is forgotten.

Run it: `python demo/continual.py`. It trains a language model on text, and adapters for three kinds of
pictures in two ways: one adapter that goes from task to task, and one for each task, which a growing state
merges (MAny). All it makes lies in `demo/out/continual`; the picture is `forgetting.png` there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import submerge
from _draw_sequence import draw
from _examples import Examples
from _pictures import KINDS, load_pictures
from _pretrain_text import pretrain
from _run import FEW_STEPS, options_of, timed
from _sequence import accuracy, inputs_of, load_adapter, load_base, new_adapter, save_base, train

OUT = Path(__file__).resolve().parent / "out" / "continual"
SAMPLES = 64
"""Unlabelled inputs of each task that its merge looks at."""
FEW = 30
"""Pictures of each task that `--fast` tests."""

Scores = list[dict[str, float]]
"""After each task: accuracy by task, of those that have been learned."""


def main() -> None:
    """Run the demo."""
    options = options_of(__doc__, OUT, has_fast=True)
    console, started = Console(), time.perf_counter()
    models = options.out / "models"
    trained, tested = load_pictures()
    if options.fast:
        tested = {kind: examples.first(FEW) for kind, examples in tested.items()}
    steps = {"steps": FEW_STEPS} if options.fast else {}
    if not (options.reuse and models.exists()):
        shutil.rmtree(models, ignore_errors=True)
        with timed("the language model on text", console):
            save_base(pretrain(**steps), models / "base")
        for kind in KINDS:
            with timed(f"an adapter on {kind}s", console):
                _train_own(models, kind, trained[kind], **steps)
        with timed("one adapter on all tasks in turn", console):
            _train_in_turn(models, trained, **steps)
    rows = {
        "own adapter each": _judge_own(models, tested),
        "one adapter, trained in turn": _judge_in_turn(models, tested),
        "MAny": _grow(options.out, models, trained, tested, console),
    }
    console.print(_table(rows))
    draw(rows, tested, options.out / "forgetting.png")
    console.print(f"Drew {options.out / 'forgetting.png'}")
    console.print(f"All of it took {time.perf_counter() - started:.0f} s.")


def _train_own(models: Path, kind: str, examples: Examples, **steps: int) -> None:
    """Train an adapter of the base for one kind of pictures, and write it as PEFT does."""
    base, processor = load_base(models / "base")
    adapter = new_adapter(base)
    train(adapter, processor, examples, **steps)
    adapter.save_pretrained(models / kind)


def _train_in_turn(models: Path, trained: Mapping[str, Examples], **steps: int) -> None:
    """Train one adapter on a task after the other, and write it after each.

    What it is after the first task is that task's own adapter.
    """
    base, processor = load_base(models / "base")
    adapter = load_adapter(base, models / KINDS[0], is_trainable=True)
    for place, kind in enumerate(KINDS[1:], 1):
        train(adapter, processor, trained[kind], **steps)
        adapter.save_pretrained(models / f"in-turn-{place}")


def _judge_own(models: Path, tested: Mapping[str, Examples]) -> Scores:
    """Return what each task's own adapter knows of its task: a model for each task."""
    own = {}
    for kind in KINDS:
        base, processor = load_base(models / "base")
        own[kind] = accuracy(load_adapter(base, models / kind), processor, tested[kind])
    return [{kind: own[kind] for kind in KINDS[: place + 1]} for place in range(len(KINDS))]


def _judge_in_turn(models: Path, tested: Mapping[str, Examples]) -> Scores:
    """Return what the one adapter knows after each task."""
    scores = []
    for place in range(len(KINDS)):
        base, processor = load_base(models / "base")
        folder = models / (f"in-turn-{place}" if place else KINDS[0])
        scores.append(_judge(load_adapter(base, folder), processor, tested, place))
    return scores


def _grow(
    out: Path, models: Path, trained: Mapping[str, Examples], tested: Mapping[str, Examples], console: Console
) -> Scores:
    """Add each task's adapter to a state, and return what the exported model knows after each."""
    _, processor = load_base(models / "base")
    shutil.rmtree(out / "state", ignore_errors=True)
    state = submerge.Continual.begin(out / "state", str(models / "base"))
    scores = []
    for place, kind in enumerate(KINDS):
        inputs = inputs_of(processor, trained[kind], SAMPLES)
        for warning in state.add(kind, str(models / kind), [inputs]):
            console.print(warning, style="yellow")
        folder = state.export(out / "merged", form="checkpoint", overwrite=True).out
        scores.append(_judge(submerge.load(folder), processor, tested, place))
    return scores


def _judge(model: Any, processor: Any, tested: Mapping[str, Examples], place: int) -> dict[str, float]:
    return {kind: accuracy(model, processor, tested[kind]) for kind in KINDS[: place + 1]}


def _table(rows: Mapping[str, Scores]) -> Table:
    table = Table(title="Right answers after the last task, %", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("model", no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, justify="right")
    table.add_column("forgotten", justify="right")
    for name, scores in rows.items():
        cells = [f"{scores[-1][kind]:.1f}" for kind in KINDS]
        table.add_row(name, *cells, f"{_forgotten(scores):.1f}", style="bold" if name == "MAny" else "")
    return table


def _forgotten(scores: Scores) -> float:
    """Return how much worse the earlier tasks are after the last one than at their best, on average."""
    falls = [max(after[kind] for after in scores if kind in after) - scores[-1][kind] for kind in KINDS[:-1]]
    return sum(falls) / len(falls)


if __name__ == "__main__":
    main()
