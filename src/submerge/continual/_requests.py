"""What callers ask of a state: options by their names, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_args, get_type_hints

from submerge.algebra import LPM_PRESETS, LpmOptions
from submerge.continual._manifest import StateManifest, StateOptions
from submerge.continual._passes import check_options, option
from submerge.errors import Problem, RequestError, did_you_mean
from submerge.store import ProjectorSettings

__all__ = [
    "check_export",
    "check_removal",
    "check_tasks",
    "check_together",
    "export_options",
    "gate_settings",
    "lpm_options",
    "state_options",
]

CHOICES = {
    **{name: get_args(words) for name, words in get_type_hints(StateOptions).items()},
    "preset": tuple(LPM_PRESETS),
    "as": ("adapter", "checkpoint"),
    "projectors": ("mixed", "merged"),
}
"""The words of each option that has some."""


def check_export(form: str, projectors: str, dtype: str | None, rank: int | None) -> None:
    """Raise `RequestError` for a form of an export that there is not, and for what another form has."""
    _check_words({"as": form, "projectors": projectors})
    if form == "adapter" and dtype is not None:
        hint = "leave it out, or write a checkpoint: --as checkpoint"
        raise RequestError(Problem("an adapter is written in float32", "--dtype", hint))
    check_options({"rank": rank})


def check_tasks(manifest: StateManifest, state: Path, form: str, rank: int | None) -> None:
    """Raise `RequestError` where there are no tasks, or an adapter is asked for whose rank nothing says."""
    if not manifest.tasks:
        hint = "add one: submerge many add STATE --task NAME --model ADAPTER --data INPUTS"
        raise RequestError(Problem("there are no tasks to merge", str(state), hint))
    if form == "adapter" and rank is None and manifest.has_checkpoints:
        what = "tasks are whole checkpoints, whose updates have no low rank"
        hint = "say --rank 64, or write a checkpoint: --as checkpoint"
        raise RequestError(Problem(what, "--rank", hint))


def check_removal(manifest: StateManifest, given: Sequence[str]) -> None:
    """Raise `RequestError` for what says how a task is measured again, where its model is not given."""
    if given and manifest.options.keeps_moments:
        what = "the state keeps the moments of its tasks, so that nothing is measured to remove one"
        raise RequestError(Problem(what, ", ".join(map(option, given)), "say the task's name alone"))
    if given:
        what = "a task whose moments were not kept is measured again, by its own model"
        raise RequestError(Problem(what, ", ".join(map(option, given)), "give its model, too, with --model"))


def gate_settings(manifest: StateManifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of a gate; raise `RequestError` for what no gate takes, be there one or none."""
    settings = {name: value for name, value in given.items() if value is not None}
    settings["pooling"] = manifest.options.pooling
    ProjectorSettings("projector", **({"score": "prototypes", "key": "image"} | settings))
    return settings


def state_options(**given: str) -> StateOptions:
    """Return how a state keeps what it measures; raise `RequestError` for words that there are not."""
    _check_words(given)
    return StateOptions(**given)  # type: ignore[arg-type]


def _check_words(given: Mapping[str, str]) -> None:
    """Raise `RequestError` with every option that has another word than its own."""
    problems = [
        Problem(f"there is no {name} {word!r}", f"--{name}", did_you_mean(word, CHOICES[name]))
        for name, word in given.items()
        if word not in CHOICES[name]
    ]
    if problems:
        raise RequestError(problems)


def lpm_options(given: LpmOptions, preset: str | None, lpm: dict[str, Any]) -> LpmOptions:
    """Return options with others over them, where they are not None; raise `RequestError` for a bad one."""
    if preset is not None:
        _check_words({"preset": preset})
    if unknown := sorted(set(lpm) - set(asdict(given))):
        hint = did_you_mean(unknown[0], asdict(given))
        raise RequestError(Problem(f"there is no option {unknown[0]!r}", "", hint))
    asked = {name: value for name, value in lpm.items() if value is not None}
    for name, value in asked.items():
        words = isinstance(getattr(given, name), str)
        if not isinstance(value, str if words else Real):
            what = f"takes {'a word' if words else 'a number'}, and not {value!r:.60}"
            raise RequestError(Problem(what, name, "see submerge many init --help"))
    try:
        return replace(given, **{**({} if preset is None else LPM_PRESETS[preset]), **asked})
    except ValueError as error:
        raise RequestError(Problem(str(error), "", "see submerge many init --help")) from None


def check_together(options: StateOptions, lpm: LpmOptions) -> None:
    """Raise `RequestError` for options that exclude each other."""
    problems = []
    if not options.keeps_moments:
        if options.statistics not in ("full", "block", "diag"):
            what = f"--keep none saves nothing with {options.statistics} statistics"
            problems.append(Problem(what, "--keep", "leave it out"))
        for name in ("energy", "forget"):
            if getattr(lpm, name) != 1:
                what = f"{name} needs each task's own moments"
                problems.append(Problem(what, "--keep", "begin a state with --keep full"))
    if options.statistics != "full" and lpm.energy != 1:
        what = f"leading eigenpairs need full statistics, not {options.statistics}"
        problems.append(Problem(what, "--energy", "leave it out, or with --preset paper say --energy 1"))
    if options.statistics == "lowrank" and lpm.offdiag != 1:
        what = "products beside the diagonal need full statistics, not lowrank"
        problems.append(Problem(what, "--offdiag", "leave it out"))
    if options.statistics == "identity" and lpm.missing == "zero":
        what = "with identity statistics nothing is known of maps that a task does not adapt"
        problems.append(Problem(what, "--missing", "leave one of them out"))
    if problems:
        raise RequestError(problems)


def export_options(manifest: StateManifest, preset: str | None, lpm: dict[str, Any]) -> LpmOptions:
    """Return the options of an export; raise `RequestError` where the state has others for good."""
    options = lpm_options(manifest.lpm, preset, lpm)
    before, after = asdict(manifest.lpm), asdict(options)
    changed = {name for name in before if before[name] != after[name]}
    fixed = {"missing"} if manifest.options.keeps_moments else set(before) - {"scale"}
    if wrong := sorted(changed & fixed):
        what = f"{', '.join(wrong)} cannot be changed: the state was begun with {before[wrong[0]]!r}"
        raise RequestError(
            Problem(what, "", "begin another state, with --keep full where moments are not kept")
        )
    check_together(manifest.options, options)
    return options
