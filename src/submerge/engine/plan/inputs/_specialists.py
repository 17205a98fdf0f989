"""The specialists of a composed model, opened: their language models, and the adapters of their streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from submerge.engine.plan.inputs._inputs import Inputs, Specialist
from submerge.engine.plan.inputs._opener import Opener
from submerge.errors import RequestError
from submerge.recipe import ModelEntry, Recipe
from submerge.store import Adapter, Checkpoint, is_adapter, split_spec

__all__ = ["open_specialists"]

LANGUAGE = "language"
"""The subfolder in which PEFT saves an adapter of this name."""


@dataclass(frozen=True)
class _Pieces:
    """Where the parts of a specialist lie: a multimodal model, and adapters for text and for its modality."""

    model: str
    language: str | None = None
    modality: str | None = None
    decoupled: bool = False


def open_specialists(recipe: Recipe, opener: Opener) -> Inputs:
    """Return the inputs of a composed model: the base, the specialists, and one model more for each stream.

    A stream is the specialist's model under the adapter of its modality. Raises `RequestError` with all that
    is wrong.
    """
    assert recipe.base is not None  # which the recipe's check refuses
    opened = {recipe.base: opener.model(recipe.base)}
    listed = [entry for entry in recipe.models if entry.modality]
    parts = {entry.modality: _find_parts(entry, opener) for entry in listed}
    for entry in listed:
        opened[entry.model] = _laid_over(opener, parts[entry.modality], parts[entry.modality].language)
    streams = {m: f"{p.model}+{p.modality}" for m, p in parts.items() if p.modality is not None}
    for modality, spec in streams.items():
        if spec not in opened:
            opened[spec] = _laid_over(opener, parts[modality], parts[modality].modality)
    if opener.problems:
        raise RequestError(list(dict.fromkeys(opener.problems)))
    inputs = Inputs.of(recipe, {spec: model for spec, model in opened.items() if model is not None})
    specialists = tuple(
        Specialist(
            modality=entry.modality,
            model=inputs.specs.index(entry.model),
            decoupled=parts[entry.modality].decoupled,
            stream=inputs.specs.index(streams[entry.modality]) if entry.modality in streams else None,
            placeholder=entry.placeholder,
            where=entry.where,
        )
        for entry in listed
    )
    return replace(inputs, specialists=specialists)


def _find_parts(entry: ModelEntry, opener: Opener) -> _Pieces:
    """Return the parts of a specialist: those that the recipe names, else those that its folder holds.

    PEFT saves several adapters of one model in a folder each, which is called as the adapter: `language`, and
    the name of the modality. The folder around them may be the multimodal model's, or any other: then an
    adapter's configuration names the model.
    """
    model, language = split_spec(entry.model, opener.root)
    modality = entry.modality_lora or None
    folder = opener.root / model
    if language is not None or entry.decoupled:
        return _Pieces(model, language, modality, entry.decoupled)
    if not folder.is_dir():  # on the Hub, where no subfolders are looked at
        is_lora = isinstance(opener.open(model), Adapter)
        return _Pieces(_trained_on(opener, model, entry) or model, model) if is_lora else _Pieces(model)
    beside = dict(_adapters_in(folder, (LANGUAGE, entry.modality), model))
    if entry.modality in beside and opener.recipe.modality_tokens == "merged":
        what = f"{beside[entry.modality]} is for tokens that modality_tokens: merged gives the merged model"
        opener.note(what, entry.where, "name the adapter for all tokens with 'lora', or keep their own")
    alone = is_adapter(folder)  # one adapter, which PEFT saves beside the folders of others
    language = beside.get(LANGUAGE, model if alone else None)
    if alone or (beside and not (folder / "config.json").is_file()):
        model = _trained_on(opener, next(iter([*beside.values(), model])), entry) or model
    return _Pieces(model, language, beside.get(entry.modality), bool(beside))


def _adapters_in(folder: Path, names: tuple[str, ...], spec: str) -> Iterator[tuple[str, str]]:
    """Yield the adapters in subfolders of these names, as specs."""
    for name in names:
        if (folder / name).is_dir() and is_adapter(folder / name):
            yield name, str(Path(spec) / name)


def _trained_on(opener: Opener, adapter_spec: str, entry: ModelEntry) -> str | None:
    """Return the model that an adapter's configuration names, or None after noting that it names none."""
    adapter = opener.open(adapter_spec, adapter=True)
    if not isinstance(adapter, Adapter):
        return None
    if adapter.base is None:
        what = f"{adapter_spec} does not say which multimodal model it was trained on"
        opener.note(what, entry.where, "write 'model: multimodal-model' with 'lora: adapter' beside it")
    else:
        opener.named_base(adapter, adapter.base)  # its problems say who named it
    return adapter.base


def _laid_over(opener: Opener, parts: _Pieces, adapter_spec: str | None) -> Checkpoint | None:
    """Return a specialist's model under one of its adapters, or None after noting what is wrong."""
    model = opener.full_model(parts.model)
    if adapter_spec is None or model is None:
        return model
    adapter = opener.open(adapter_spec, adapter=True)
    if not isinstance(adapter, Adapter):
        return None
    return opener.on_base(model, adapter, f"{parts.model}+{adapter_spec}")
