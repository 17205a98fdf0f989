"""The entries of `models`: the model, the parameters and the task that each names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.methods import Method
from submerge.recipe._data import read_data_source
from submerge.recipe._modalities import read_specialist
from submerge.recipe._model_entry import ModelEntry
from submerge.recipe._parameters import parameter_names, read_parameters
from submerge.recipe._problems import KeyPath, Report, show
from submerge.recipe._projectors import read_share
from submerge.recipe._schema import ABSENT_KEYS, ENTRY_KEYS
from submerge.recipe._specs import add_adapter, read_spec
from submerge.recipe._tasks import check_names, read_task

__all__ = ["read_entry", "read_models"]


def read_models(
    raw: Any,
    method: Method | None,
    methods: Mapping[str, Method],
    report: Report,
    *,
    named: bool = False,
    mixes: bool = False,
) -> list[ModelEntry] | None:
    """Return the entries of `models`, as far as they could be read; None where one could not.

    `named` says that coefficients of the models stand in a file, by their names, and `mixes` that outputs of
    their projectors are mixed, by prototypes that their data gives.
    """
    path: KeyPath = ("models",)
    if not isinstance(raw, list) or not raw:
        what = "'models' is empty" if raw in (None, [], {}) else f"'models' is a list, not {show(raw)}"
        report.add(what, path, "write '- model: …', once for each model")
        return None
    entries = [
        read_entry(item, (*path, i), method, methods, report, named=named, mixes=mixes)
        for i, item in enumerate(raw)
    ]
    readable = [entry for entry in entries if entry is not None]
    check_names(readable, report)
    return readable if len(readable) == len(entries) else None


def _is_short(raw: Mapping[str, Any]) -> bool:
    """Return whether an entry is `chat: 0.5`: a key of ours has no number."""
    values = list(raw.values())
    return (
        len(raw) == 1 and isinstance(values[0], (int, float)) and not raw.keys() & {*ENTRY_KEYS, *ABSENT_KEYS}
    )


def read_entry(
    raw: Any,
    path: KeyPath,
    method: Method | None,
    methods: Mapping[str, Method],
    report: Report,
    *,
    named: bool = False,
    mixes: bool = False,
) -> ModelEntry | None:
    """Return the entry that was written at `path`, or None after noting why it could not be read."""
    if isinstance(raw, str):
        raw = {"model": raw}
    if not isinstance(raw, dict):
        hint = "write '- model: …'"
        report.add(f"an entry of 'models' is a mapping, not {show(raw)}", path, hint)
        return None
    if _is_short(raw):
        ((model, weight),) = raw.items()
        what = f"{show(model)} is no key of an entry, and may be meant as a model"
        hint = f"write {{model: {model}, parameters: {{weight: {weight}}}}}"
        report.add(what, path, hint)
        return None
    report.check_keys(raw, ENTRY_KEYS, path, absent=ABSENT_KEYS, parameters=parameter_names(method, methods))
    parameters = read_parameters(
        raw.get("parameters"), (*path, "parameters"), method, methods, report, of_model=True
    )
    if "model" not in raw:
        report.add("this entry names no model", path, "add 'model: …'")
        return None
    spec = read_spec(raw["model"], (*path, "model"), report)
    if spec is not None and raw.get("lora") is not None:
        spec = add_adapter(spec, raw["lora"], (*path, "lora"), report)
    name, head = read_task(raw, path, method, report, named=named or mixes)
    data = read_data_source(raw.get("data"), (*path, "data"), method, report, mixes=mixes)
    share = read_share(raw, path, report)
    own = read_specialist(raw, path, report)
    if spec is not None and own.language_lora and raw.get("lora") is None:
        spec = add_adapter(spec, own.language_lora, (*path, "language_lora"), report)
    if spec is None:
        return None
    return ModelEntry(
        spec, parameters, report.where(path), name, head, data, **vars(own), share_projector=share
    )
