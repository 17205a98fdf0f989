"""`load_recipe`: the sections of a recipe, read one after another, and every problem of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import submerge.methods as installed
from submerge.arguments import checked
from submerge.errors import RequestError, did_you_mean
from submerge.methods import CalibrationSpec, Method
from submerge.recipe._chat_templates import read_chat_template
from submerge.recipe._coefficients import Coefficients
from submerge.recipe._entries import read_models
from submerge.recipe._load_mixture import describes_mixture
from submerge.recipe._modalities import check_composition, read_modality_tokens
from submerge.recipe._model_entry import ModelEntry, same_model
from submerge.recipe._moments import check_moments, read_moments_key
from submerge.recipe._parameters import (
    check_required,
    parameter_names,
    read_parameters,
    single_values,
    warn_of_gradients,
)
from submerge.recipe._participants import check_participants, find_participants
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._projector_mix import ProjectorMix
from submerge.recipe._projectors import check_projectors, read_projectors
from submerge.recipe._recipe import Recipe
from submerge.recipe._rules import Setting
from submerge.recipe._schema import ABSENT_KEYS, RECIPE_KEYS
from submerge.recipe._sections import (
    OutputForm,
    read_dtype,
    read_name,
    read_output,
    read_rules,
    read_seed,
)
from submerge.recipe._slices import SliceReader, has_slices
from submerge.recipe._source import RecipeSource, check_mapping, open_source
from submerge.recipe._specs import read_spec
from submerge.recipe._stack import Slice
from submerge.recipe._task_folder import TaskFolder, read_task_folder
from submerge.recipe._tokenizer import check_rows, read_tokenizer
from submerge.recipe._weights import check_weights, read_coefficients_key

__all__ = ["load_recipe", "read_recipe"]


@checked
def load_recipe(
    source: str | Path | Mapping[str, Any],
    *,
    methods: Mapping[str, Method] | None = None,
    output: Mapping[str, Any] | None = None,
    mergekit: bool = False,
) -> Recipe:
    """Return the recipe in `source`, checked in full: a file's path, YAML text, or a mapping.

    Args:
        source: a str that holds a line end is text, any other a path.
        methods: those that the recipe may name, by name; all that are installed by default.
        output: takes precedence over the keys of the recipe's own section `output`.
        mergekit: take for a warning what mergekit ignores: keys and parameters that it does not know.

    Raises:
        RequestError: holds every problem, each with its line and what to do.

    Examples:
        >>> import submerge
        >>> recipe = submerge.load_recipe("recipe.yaml")
        >>> recipe.method.name, recipe.base, [model.model for model in recipe.models]
        ('ties', 'base', ['chat', 'code', 'math'])
    """
    return read_recipe(open_source(source, lenient=mergekit), methods, output)


def read_recipe(
    opened: RecipeSource,
    methods: Mapping[str, Method] | None = None,
    output: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe in the data of one document; arguments and errors are those of `load_recipe`."""
    methods = installed.METHODS if methods is None else methods
    report, data = opened.report, opened.data
    check_mapping(opened, "merge_method")
    _check_no_mixture(data, report)
    named = data.get("merge_method")
    names = parameter_names(methods.get(named) if isinstance(named, str) else None, methods)
    report.check_keys(data, RECIPE_KEYS, (), absent=ABSENT_KEYS, parameters=names)
    method = _read_method(data, methods, report)
    form = read_output(_overridden(data.get("output"), output), report)
    top = read_parameters(data.get("parameters"), ("parameters",), method, methods, report)
    base = None if data.get("base_model") is None else read_spec(data["base_model"], ("base_model",), report)
    if has_slices(data):
        return _of_slices(opened, SliceReader(method, methods, top, base, report), form)
    return _of_models(opened, _Head(method, methods, form, top, base))


class _Head(NamedTuple):
    """What a recipe says of all its models, as far as it could be read."""

    method: Method | None
    methods: Mapping[str, Method]
    form: OutputForm
    top: Mapping[str, Setting]
    base: str | None


def _of_models(opened: RecipeSource, head: _Head) -> Recipe:
    """Return a recipe of models, or raise `RequestError` with every problem of it."""
    data, report = opened.data, opened.report
    method, base = head.method, head.base
    projectors = read_projectors(data, report)
    prototypes = read_task_folder(data.get("prototypes"), "prototypes", report)
    given = _Given(
        read_coefficients_key(data.get("coefficients"), method, report),
        read_moments_key(data.get("moments"), method, report),
        mixes=isinstance(projectors, ProjectorMix) or report.has(("projectors",)),
    )
    models = _read_models(data, method, head.methods, report, mixes=given.mixes)
    if method is not None:
        check_required(method, data.get("parameters"), report)
        _check_base(data, method, head.form, report)
    sections = _read_sections(data, base, models, report)
    check_composition(data, method, models or (), base, head.form, report)
    check_projectors(projectors, prototypes, method, models or (), base, head.form, report)
    participants: tuple[ModelEntry, ...] = ()
    in_parameters = True
    base_is_read = base is not None or data.get("base_model") is None
    if method is not None and models is not None and base_is_read:
        participants, in_parameters = _read_participants(method, models, base, head.top, given, report)
    report.raise_if_any()
    assert method is not None
    assert models is not None
    warn_of_gradients(method, head.top, {len(models), len(participants)}, report)
    return Recipe(
        method=method,
        models=tuple(models),
        base=base,
        participants=participants,
        parameters=head.top,
        output=head.form,
        path=opened.path,
        text=opened.text,
        positions=report.positions,
        coefficients=given.coefficients,
        calibrates=given.coefficients is None and not in_parameters,
        moments=given.moments,
        projectors=projectors,
        prototypes=prototypes,
        warnings=report.warnings,
        **sections,
    )


class _Given(NamedTuple):
    """What a recipe names in the place of what would be made of its data.

    `mixes` says that data is read for prototypes, too.
    """

    coefficients: Coefficients | None
    moments: TaskFolder | None
    mixes: bool


def _read_participants(
    method: Method,
    models: list[ModelEntry],
    base: str | None,
    top: Mapping[str, Setting],
    given: _Given,
    report: Report,
) -> tuple[tuple[ModelEntry, ...], bool]:
    """Return the models that the method sees, and whether their weights are in the parameters.

    What is wrong with them, with their weights, and with what is made of their data, is noted.
    """
    participants = find_participants(method, models, base, top, report)
    is_read = not report.has(("coefficients",))
    in_parameters = is_read and check_weights(
        method, participants, models, top, given.coefficients, report, mixes=given.mixes
    )
    if method.calibration is not None:
        _check_settings(method.calibration, method, top, report)
        if is_read and given.coefficients is None and not in_parameters:
            _check_calibration(method, base, models, report)
    if method.moments and not report.has(("moments",)):
        check_moments(method, models, base, top, given.moments, report, mixes=given.mixes)
    elsewhere = () if in_parameters else ("weight",)
    check_participants(method, participants, models, top, report, elsewhere=elsewhere)
    return participants, in_parameters


def _of_slices(opened: RecipeSource, reader: SliceReader, form: OutputForm) -> Recipe:
    """Return a recipe of slices, or raise `RequestError` with every problem of it."""
    data, report = opened.data, opened.report
    modules = reader.modules(data, form)
    slices = [piece for module in modules for piece in module.slices]
    models = _models_of(slices, reader.base)
    sections = _read_sections(data, reader.base, models, report)
    report.raise_if_any()
    assert reader.method is not None
    return Recipe(
        method=reader.method,
        models=tuple(models),
        base=reader.base,
        participants=tuple(models),
        parameters=reader.top,
        output=form,
        path=opened.path,
        text=opened.text,
        positions=report.positions,
        stack=modules,
        warnings=report.warnings,
        **sections,
    )


def _models_of(slices: Sequence[Slice], base: str | None) -> list[ModelEntry]:
    """Return an entry for each model of slices; the parameters that it is given stand in those."""
    spelled = {} if base is None else {same_model(base): base}
    models: dict[str, ModelEntry] = {}
    for piece in slices:
        bases = [] if piece.base is None else [ModelEntry(piece.base, {}, piece.where)]
        for entry in (*(source.entry for source in piece.sources), *bases):
            name = same_model(entry.model)
            model = spelled.setdefault(name, entry.model)
            models.setdefault(name, replace(entry, model=model, parameters={}))
    return list(models.values())


def _read_sections(
    data: dict[str, Any], base: str | None, models: Sequence[ModelEntry] | None, report: Report
) -> dict[str, Any]:
    """Return the small sections, by the fields of `Recipe`."""
    tokenizer = read_tokenizer(data, base, models, report)
    rules = read_rules(data.get("rules"), report, by_position=report.lenient and tokenizer.is_open)
    check_rows(tokenizer, rules, report)
    return {
        "rules": rules,
        "dtype": read_dtype(data, "dtype", report),
        "out_dtype": read_dtype(data, "out_dtype", report),
        "tokenizer": tokenizer,
        "chat_template": read_chat_template(data.get("chat_template"), report),
        "seed": read_seed(data.get("seed"), report),
        "name": read_name(data, report),
        "modality_tokens": read_modality_tokens(data, report),
    }


def _check_no_mixture(data: dict[str, Any], report: Report) -> None:
    """Raise `RequestError` for a recipe of mergekit-moe, of which no line is that of a merge."""
    if describes_mixture(data):
        hint = "submerge moe RECIPE OUT makes one"
        report.add("this recipe is for a mixture of experts, and not for a merge", ("experts",), hint)
        report.raise_if_any()


def _check_base(data: dict[str, Any], method: Method, form: OutputForm, report: Report) -> None:
    """Note that a base is missing, which a method needs but for adapters that become one."""
    if method.needs_base and data.get("base_model") is None and form.form == "checkpoint":
        hint = "add 'base_model: …'"
        if method.calibration is None or data.get("coefficients") is not None:  # else data runs through it
            hint += " (adapters need none for output: {as: adapter})"
        report.add(f"{method.name} needs a base_model", ("merge_method",), hint)


def _check_calibration(
    method: Method, base: str | None, models: Sequence[ModelEntry], report: Report
) -> None:
    """Note why nothing can be learned: there is no base through which data runs, or there are several."""
    if any(entry.modality for entry in models):
        what = f"{method.name} learns weights from inputs of one model, and a composed model has several"
        hint = "take another method, or give 'coefficients: file.json'"
        report.add(what, ("merge_method",), hint)
    if base is None and not report.has(("merge_method",)):
        what = f"{method.name} needs a base_model, through which the data runs"
        report.add(what, ("merge_method",), "add 'base_model: …'")


def _check_settings(
    calibration: CalibrationSpec, method: Method, top: Mapping[str, Setting], report: Report
) -> None:
    """Note settings of a calibration that cannot be."""
    try:
        calibration.settings(single_values(method, top), False)
    except RequestError as error:
        for problem in error.problems:
            report.add(problem.what, ("parameters",), problem.hint)


def _overridden(section: Any, output: Mapping[str, Any] | None) -> Any:
    """Return the section `output` with the caller's keys in the place of its own.

    A caller who wants a checkpoint wants nothing that the section says of an adapter.
    """
    if not output:
        return section
    own = {} if section is None or output.get("as") == "checkpoint" else section
    return {**own, **output} if isinstance(own, dict) else own


def _read_method(data: dict[str, Any], methods: Mapping[str, Method], report: Report) -> Method | None:
    """Return the method that the recipe names, or None."""
    name = data.get("merge_method")
    path: KeyPath = ("merge_method",)
    if name is None:
        report.add("the recipe names no merge_method", path, "`submerge methods` lists all")
    elif not isinstance(name, str):
        report.add(f"merge_method is a name, not {show(name)}", path, "`submerge methods` lists all")
    elif name in methods:
        return methods[name]
    else:
        near = did_you_mean(name, methods, "")
        hint = f"{near} `submerge methods` lists all".lstrip()
        report.add(f"unknown method {show(name)}", path, hint)
    return None


def _read_models(
    data: dict[str, Any],
    method: Method | None,
    methods: Mapping[str, Method],
    report: Report,
    *,
    mixes: bool,
) -> list[ModelEntry] | None:
    """Return the models, or None."""
    if "models" not in data:
        report.add("the recipe lists no models", (), "add 'models:' with '- model: …' lines")
        return None
    named = data.get("coefficients") is not None
    return read_models(data["models"], method, methods, report, named=named, mixes=mixes)
