"""Merges four fine-tunes of a small vision transformer, and shows what each method keeps of them.

Run it: `python demo/digits.py`. It trains the models and LoRA adapters (CPU, about two minutes), merges
them with the `submerge` command, and judges every merge on held-out images. All it makes lies in `demo/out`.
"""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from transformers import ViTForImageClassification

from _calibrate import IMAGES, grow, learn
from _merge import ADAPTER_RECIPES, GROWN, RECIPES, SERVED, Recipe, merge_all
from _models import accuracies, load, save
from _report import Row, draw, table
from _run import options_of
from _serve import answers
from _tasks import BASE_TASK, TASKS, TUNED_TASKS, Split, Task, load_splits
from _train import finetune, finetune_adapter, pretrain

OUT = Path(__file__).resolve().parent / "out"
SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)
"""The values of λ that are tried on the validation images."""
SERVINGS = {"mass, each image": 1, "mass, groups of 4": 4}
"""Images that are known to be of one task, though not of which, where MASS finds the task."""


def main() -> None:
    """Run the demo."""
    options = options_of(__doc__, OUT)

    console = Console()
    started = time.perf_counter()
    train, validation, test = load_splits()
    models = _train_all(options.out / "models", train, options.reuse, console)
    base = load(models[BASE_TASK.name])
    upright = accuracies(base, test)
    rows = [Row("base", "base", upright)]
    merged = _merge_all(options.out, models, base, validation, console)
    bank, _ = merged.pop(SERVED)
    served = {name: answers(bank, test, size) for name, size in SERVINGS.items()}
    for lora in (False, True):
        own = {BASE_TASK.name: upright}
        for task in TUNED_TASKS:
            own[task.name] = accuracies(_load(models, models[_tuned(task, lora)]), test)
        mark, word = ("lora: ", "adapter") if lora else ("", "tuned")
        rows += [Row(f"{word}: {task.name}", f"{mark}tuned", own[task.name]) for task in TUNED_TASKS]
        each = {name: scores[name] for name, scores in own.items()}
        rows.append(Row(f"own {'adapter' if lora else 'model'} each", f"{mark}own", each))
        for recipe, (folder, scale) in merged.items():
            if recipe.lora == lora:
                scores = accuracies(_load(models, folder), test)
                rows.append(Row(recipe.name, f"{mark}merge", scores, scale))
        if not lora:
            rows += [Row(name, "served", found.accuracies) for name, found in served.items()]

    console.print(table(rows))
    picture = options.out / "demo.png"
    draw(rows, torch.stack([task.view(test.images[3:4])[0, 0] for task in TASKS]), picture)
    best = max(rows, key=lambda row: (row.kind == "merge") * row.mean)
    recipe = options.out / "recipes" / f"{best.name}.yaml"
    for name, found in served.items():
        console.print(f"{name}: {found.own:.0f} % of all but the upright ones met their own model.")
    console.print(f"Picture: {_short(picture)}. All of it took {time.perf_counter() - started:.0f} s.")
    console.print("The best merge once more, by hand:")
    command = ["submerge", "merge", _short(recipe), "-o", _short(options.out / "mine")]
    console.print(f"  {shlex.join(command)}", style="bold", soft_wrap=True, highlight=False)


def _train_all(folder: Path, train: Split, reuse: bool, console: Console) -> dict[str, Path]:
    """Return name -> folder of the models and adapters; the base's under the task it is good at."""
    models = {name: folder / name for task in TUNED_TASKS for name in (_tuned(task), _tuned(task, lora=True))}
    models[BASE_TASK.name] = folder / "base"
    if reuse and all(path.exists() for path in models.values()):
        return models
    shutil.rmtree(folder, ignore_errors=True)
    with console.status("training the base"):
        started = time.perf_counter()
        base = pretrain(train)
        save(base, models[BASE_TASK.name])
    console.print(f"Trained the base in {time.perf_counter() - started:.0f} s.")
    for task in TUNED_TASKS:
        with console.status(f"fine-tuning on {task.name} digits"):
            started = time.perf_counter()
            tuned = copy.deepcopy(base)
            finetune(tuned, train, task)
            save(tuned, models[_tuned(task)])
            whole = time.perf_counter()
            finetune_adapter(copy.deepcopy(base), train, task).save_pretrained(
                models[_tuned(task, lora=True)]
            )
        console.print(
            f"Fine-tuned on {task.name} digits in {whole - started:.0f} s, "
            f"an adapter in {time.perf_counter() - whole:.0f} s."
        )
    return models


def _tuned(task: Task, lora: bool = False) -> str:
    """Return the name of the fine-tune for a task."""
    return f"{task.name}-lora" if lora else task.name


def _adapters(models: Mapping[str, Path]) -> dict[str, Path]:
    """Return task -> the folder of its adapter."""
    return {task.name: models[_tuned(task, lora=True)] for task in TUNED_TASKS}


def _load(models: Mapping[str, Path], folder: Path) -> ViTForImageClassification:
    """Return the model or the adapted base that a folder holds."""
    return load(folder, models[BASE_TASK.name])


def _merge_all(
    out: Path,
    models: Mapping[str, Path],
    base: ViTForImageClassification,
    validation: Split,
    console: Console,
) -> dict[Recipe, tuple[Path, float | None]]:
    """Return recipe -> folder of its merge, and its λ if it has one, chosen on validation images."""
    recipes = out / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    known = (*RECIPES, SERVED, *ADAPTER_RECIPES)
    folders = {recipe: out / "merged" / recipe.name for recipe in known}
    scales = dict.fromkeys(known, 1.0)

    def run(chosen: list[Recipe]) -> None:
        jobs = {}
        for recipe in chosen:
            path = recipes / f"{recipe.name}.yaml"
            tuned = {task.name: models[_tuned(task, recipe.lora)] for task in TUNED_TASKS}
            recipe.write(path, models[BASE_TASK.name], tuned, scales[recipe])
            jobs[path] = folders[recipe]
        with console.status(f"merging by {len(jobs)} recipes"):
            started = time.perf_counter()
            summaries = merge_all(jobs)
        inside = sum(summary["seconds"] for summary in summaries.values())
        console.print(
            f"Merged by {len(jobs)} recipes in {time.perf_counter() - started:.0f} s "
            f"({inside:.2f} s of them merging)."
        )

    _learn_all(recipes, models, validation, console)
    run(list(known))
    scaled = [recipe for recipe in known if recipe.scaled]
    with console.status("choosing scales on the validation images"):
        for recipe in scaled:
            scales[recipe] = _best_scale(base, _load(models, folders[recipe]), validation)
    run(scaled)
    folders[GROWN] = out / "merged" / GROWN.name
    with console.status("adding the adapters to a state"):
        grow(models[BASE_TASK.name], _adapters(models), validation, out / "state", folders[GROWN])
    return {recipe: (folders[recipe], scales[recipe] if recipe.scaled else None) for recipe in folders}


def _learn_all(recipes: Path, models: Mapping[str, Path], validation: Split, console: Console) -> None:
    """Learn the coefficients that recipes name, from images of the tasks without their classes."""
    for recipe in ADAPTER_RECIPES:
        if recipe.learned is not None:
            file = recipes / f"{recipe.name}.json"
            with console.status(f"learning the coefficients of {recipe.name}"):
                learned = learn(models[BASE_TASK.name], _adapters(models), validation, recipe.learned, file)
            console.print(
                f"Learned the coefficients of {recipe.name} from {IMAGES} images of each task in "
                f"{learned.seconds:.0f} s: {learned.loss[0]:.4f} → {learned.loss[-1]:.4f}."
            )


def _best_scale(base: ViTForImageClassification, merged: ViTForImageClassification, split: Split) -> float:
    """Return the λ with the best mean accuracy; `merged` is the merge at λ = 1.

    The weights are linear in λ, so one merge tells all of them: θ(λ) = θ_0 + λ (θ(1) − θ_0).
    """
    start, end = base.state_dict(), merged.state_dict()
    trial = copy.deepcopy(base)

    def score(scale: float) -> float:
        trial.load_state_dict({name: torch.lerp(start[name], end[name], scale) for name in start})
        return sum(accuracies(trial, split).values())

    return max(SCALES, key=score)


def _short(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    main()
