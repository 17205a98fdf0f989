"""`submerge.calibrate_router`: unlabelled inputs of the tasks, for the router of a served folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from submerge.arguments import checked
from submerge.calibrate import Data, Inputs, ModelInputs, read_data
from submerge.errors import Problem, RequestError, few
from submerge.routing import Evidence, Router, RouterCalibration, RouterReference, fit_calibration
from submerge.serving._calibration_file import write_calibration
from submerge.serving._folder import gate_manifest
from submerge.serving._load import load
from submerge.serving._routed_model import input_count

__all__ = ["calibrate_router"]

SAMPLES, BATCH, MAX_LENGTH = 32, 32, 512
TOGETHER = "inputs of all tasks"
LEAST = 4
"""Inputs, at least, of all tasks together."""
MOST_BYTES = 1 << 30
"""What the inputs' vectors may take in memory. Of larger models every k-th site is looked at."""


@checked
def calibrate_router(
    folder: str | Path,
    data: Mapping[str, Data] | Data,
    *,
    samples: int = SAMPLES,
    batch_size: int = BATCH,
    max_length: int = MAX_LENGTH,
    device: torch.device | str | None = None,
) -> RouterCalibration | RouterReference:
    """Return what inputs of the tasks say of a served folder's router, and write it into the folder.

    The router of MASS needs no data. With some inputs of each task, whose answers need not be known, a linear
    discriminant of what they show at the sites tells tasks apart, too, and stands beside the scores without
    data, with weights from cross-validation. Where nobody knows whose the inputs are, the scores count from
    what they get on average. `submerge.load(folder)` uses it from then on, and with `calibration="none"` it
    does not. One pass over the inputs; nothing is trained.

    Args:
        folder: what `submerge merge` wrote by `mass`.
        data: inputs of every task by its name: what `submerge.calibrate.read_items` reads, or texts, items,
            rows, or batches of the model's inputs as they are. Or such inputs of all tasks together, as they
            come in.
        samples: how many inputs of a task are looked at, evenly spaced, of batches of tensors, too; of inputs
            of all tasks together so many times as there are tasks.
        batch_size: inputs in a pass.
        max_length: how many tokens a text has at most.
        device: of the model; the CPU by default.

    Raises:
        RequestError: a task has no inputs, or fewer than four, or there are fewer than four of all together;
            there are inputs of a task that the folder lacks, or that its processor does not take; or the
            folder has no router.
        WorkError: the disk refuses; the folder is then as it was.

    Examples:
        >>> import submerge
        >>> import torch
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> draw = torch.Generator().manual_seed(0)
        >>> rows = {"chat": torch.randint(0, 99, (8, 6), generator=draw)}
        >>> rows["code"] = torch.randint(100, 256, (8, 6), generator=draw)
        >>> data = {task: [{"input_ids": ids}] for task, ids in rows.items()}
        >>> calibration = submerge.calibrate_router("served", data)
        >>> calibration.counts
        {'chat': 8, 'code': 8}
    """
    path = Path(folder)
    names = _tasks(path)
    if isinstance(data, Mapping):
        _check_tasks(names, data)
        model = load(path, device=device, calibration="none")
        sources = {name: data[name] for name in names}
    else:
        model = load(path, device=device, calibration="none", reference="none")
        sources, samples = {TOGETHER: data}, samples * len(names)
    if not model.router.rules.standardised:
        what = "a calibration does not go with select: weighted"
        raise RequestError(Problem(what, str(path), "merge with another select"))
    inputs = read_data(
        sources,
        names,
        model,
        processor=None,
        batch_size=batch_size,
        max_length=max_length,
        samples=samples,
    )
    by_task = isinstance(data, Mapping)
    calibration = _calibrated(model, inputs) if by_task else _reference(model, inputs[TOGETHER])
    write_calibration(path, calibration)
    return calibration


def _tasks(path: Path) -> tuple[str, ...]:
    """Return the names of a folder's tasks, between which its gate chooses by the input."""
    _, gate = gate_manifest(path)
    names = tuple(task["name"] for task in gate.tasks)
    if gate.method != "mass" or len(names) < 2:
        one = gate.method == "mass"
        what = "the folder has one task" if one else "the gate of this folder routes no inputs"
        raise RequestError(Problem(what, str(path), "there is nothing to calibrate"))
    return names


def _check_tasks(names: tuple[str, ...], data: Mapping[str, Data]) -> None:
    """Raise `RequestError` where there are inputs of other tasks than the folder's, or not of all."""
    problems = [
        Problem(f"there is no task {name!r}", "data", f"there are {few(names, 20)}")
        for name in data
        if name not in names
    ]
    if lacking := [name for name in names if name not in data]:
        hint = "give some of every task: the router would take them for those of others"
        problems.append(Problem(f"there are no inputs of {few(lacking, 20)}", "data", hint))
    if problems:
        raise RequestError(problems)


@torch.no_grad()
def _calibrated(model: Any, inputs: Mapping[str, Inputs]) -> RouterCalibration:
    """Return the calibration by one pass over the batches of each task, in the order of the tasks."""
    router: Router = model.router
    count = sum(map(len, inputs.values()))  # of batches
    sites: list[int] = []
    vectors: dict[int, list[torch.Tensor]] = {}
    scores: dict[bool, list[torch.Tensor]] = {}
    tasks: list[int] = []
    for task, batch in ((task, batch) for task, own in enumerate(inputs.values()) for batch in own):
        moved, size = _sized(batch, model)
        sites = sites or _within_memory(router, count * size)
        with _refused_inputs(model, moved):
            evidence = router.first_pass.evidence(model, moved, size, sites)
        for site in sites:
            vectors.setdefault(site, []).append(evidence.inputs[site].cpu())
        for heads in (False, True) if evidence.heads is not None else (False,):
            shown = evidence if heads else replace(evidence, heads=None)
            scores.setdefault(heads, []).append(router.data_free(shown).cpu())
        tasks += [task] * size
    return fit_calibration(
        router.names,
        {site: torch.cat(parts) for site, parts in vectors.items()},
        torch.tensor(tasks),
        {heads: torch.cat(parts) for heads, parts in scores.items()},
        router.rules.first_pass_words,
    )


@torch.no_grad()
def _reference(model: Any, batches: Inputs) -> RouterReference:
    """Return the level of the scores by one pass over inputs of all tasks together."""
    router: Router = model.router
    shown: list[Evidence] = []
    for batch in batches:
        moved, size = _sized(batch, model)
        with _refused_inputs(model, moved):
            shown.append(router.first_pass.evidence(model, moved, size))
    scores = torch.cat([torch.stack([r for site in one.sites for r in site]).double() for one in shown], 1)
    levels = scores.mean(1)  # [maps, T]
    if (count := scores.shape[1]) < LEAST:
        hint = f"give {LEAST} of each task, or more"
        raise RequestError(Problem(f"there are {count} inputs", "data", hint))
    if not levels.isfinite().all():
        hint = "look at the inputs, or load the folder in float32 and see what it gives"
        raise RequestError(Problem("the scores of the inputs have NaN or Inf", "data", hint))
    leads = torch.cat([router.data_free(_above(one, levels)).argmax(1) for one in shown])
    shares = torch.bincount(leads, minlength=len(router.names)).double() / count
    found = dict(zip(router.names, shares.tolist(), strict=True))
    return RouterReference(levels.cpu(), router.rules.first_pass_words, count, found)


def _above(evidence: Evidence, levels: torch.Tensor) -> Evidence:
    """Return evidence whose scores count from levels [maps, T]."""
    each = iter(levels)
    return replace(evidence, sites=[[r - next(each) for r in site] for site in evidence.sites])


def _sized(batch: ModelInputs, model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Return a batch on the model's device and how many inputs it has; the model's sites are known then."""
    moved = _moved(batch, model)
    size = input_count(model, moved)
    with _refused_inputs(model, moved):
        model.router.first_pass.find_sites(model, moved, size)
    return moved, size


@contextmanager
def _refused_inputs(model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Raise `RequestError` for inputs that the model does not take."""
    try:
        yield
    except (TypeError, ValueError) as error:
        what = f"the model refuses inputs of {few(inputs)} ({str(error).partition(chr(10))[0]})"
        raise RequestError(Problem(what, type(model).__name__, "give what its processor returns")) from error


def _within_memory(router: Router, count: int) -> list[int]:
    """Return the sites whose vectors are held, of so many inputs: every k-th, for the least k that does."""
    factors = router.updates.factors
    widths = [factors[site.maps[0]].down.shape[1] for site in router.sites]
    sites = list(range(len(widths)))
    spaced = (sites[::-step][::-1] for step in range(1, len(sites) + 1))  # the last site is one of them
    fitting = (own for own in spaced if 4 * count * sum(widths[site] for site in own) <= MOST_BYTES)
    return next(fitting, sites[-1:])


def _moved(batch: ModelInputs, model: Any) -> dict[str, torch.Tensor]:
    """Return a batch on the model's device, with its floats in the model's dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }
