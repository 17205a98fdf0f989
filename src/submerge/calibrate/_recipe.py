"""Calibration as a recipe asks for it: its base, its adapters, their data, and the method's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from submerge.calibrate._calibration import Calibration
from submerge.calibrate._learn import learn_coefficients
from submerge.calibrate._options import Step
from submerge.errors import Problem, RequestError
from submerge.methods import methods_with
from submerge.recipe import DataSource, ModelEntry, Recipe, load_recipe
from submerge.store import Checkpoint, open_model, split_spec

__all__ = ["calibrate_recipe"]

CONTRASTIVE = ("clip", "siglip")
"""Models whose tower of images is a classifier by itself."""


def calibrate_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    steps: int | None = None,
    device: str = "cpu",
    progress: Callable[[Step], None] | None = None,
) -> Calibration:
    """Return the coefficients of a recipe's adapters, learned from the `data` of its entries.

    Adapters and data sets go by the entries' names, and modules by the names of the base's tensors, so that a
    recipe which names the saved file as its `coefficients` finds them.

    Args:
        recipe: a path, YAML text (with a newline), a mapping, or a `Recipe`, by a method that calibrates.
        steps: in the place of the recipe's; 0 only measures.
        device: where the base runs, such as "cuda".
        progress: called with a `Step` after each batch that is measured, and after each step.

    Raises:
        RequestError: the recipe, a model, an adapter or the data are not right; every problem is named.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from transformers import BertTokenizer
        >>> import submerge
        >>> from submerge.calibrate import calibrate_recipe
        >>> vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "dog": 6}
        >>> saved = BertTokenizer(vocab=vocabulary).save_pretrained("base")
        >>> report = submerge.extract_lora("chat", "chat-lora", base="base", rank=4)
        >>> written = Path("inputs.jsonl").write_text(json.dumps({"text": "a dog"}))
        >>> models = [{"model": "chat-lora", "data": "inputs.jsonl"}]
        >>> recipe = {"merge_method": "nsc", "base_model": "base", "models": models}
        >>> len(calibrate_recipe(recipe, steps=0).loss)
        1
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if recipe.method.calibration is None:
        what, learns = f"{recipe.method.name} learns no weights", methods_with(lambda m: m.calibration)
        hint = f"write 'merge_method: {learns}' to calibrate, and name the file as 'coefficients' here"
        raise RequestError(Problem(what, "merge_method", hint))
    base, adapters, data = _opened(recipe)
    vision = _is_of_images(base.config or {})
    arguments = recipe.calibration_settings(vision=vision) | {"seed": recipe.seed}
    if steps is not None:
        arguments["steps"] = steps
    return learn_coefficients(base.path, adapters, data, device=device, progress=progress, **arguments)


def _opened(recipe: Recipe) -> tuple[Checkpoint, dict[str, str], dict[str, DataSource]]:
    """Return the base, and the adapters' specs and the data by the entries' names, or raise all problems."""
    problems: list[Problem] = []
    base = _checkpoint(recipe.base or "", recipe, problems)
    adapters: dict[str, str] = {}
    data: dict[str, DataSource] = {}
    for entry in recipe.participants:
        under, adapter = split_spec(entry.model, recipe.root)
        adapters[entry.adapter_name] = adapter or under
        if adapter is not None:
            problems += _other_base(_checkpoint(under, recipe, problems), base, entry)
        problems += _not_an_adapter(adapter or under, recipe, entry)
        if entry.data is None:
            what = f"{entry.model} has no data to learn its weights from"
            problems.append(Problem(what, entry.where, "add 'data: …' to its entry, and no 'weight'"))
        else:
            data[entry.adapter_name] = entry.data
    if problems:
        raise RequestError(list(dict.fromkeys(problems)))
    assert base is not None
    return base, adapters, data


def _checkpoint(spec: str, recipe: Recipe, problems: list[Problem]) -> Checkpoint | None:
    """Return the model that a spec names, or None after noting why it is none that data can run through."""
    if not spec:
        problems.append(Problem("there is no base to run data through", "base_model", "add 'base_model: …'"))
        return None
    try:
        model = open_model(spec, root=recipe.root)
    except RequestError as error:
        problems += error.problems
        return None
    if isinstance(model, Checkpoint):
        return model
    problems.append(Problem("is an adapter, and no base", spec, "name the model that it was trained on"))
    return None


def _other_base(under: Checkpoint | None, base: Checkpoint | None, entry: ModelEntry) -> list[Problem]:
    """Return that an adapter is written on another model than the recipe's base, if it is."""
    if under is None or base is None or under.path == base.path:
        return []
    what = f"{entry.model} is an adapter on another model than the base {base.label}"
    return [Problem(what, entry.where, "learn weights of adapters of one base")]


def _not_an_adapter(spec: str, recipe: Recipe, entry: ModelEntry) -> list[Problem]:
    """Return why a spec cannot be opened as an adapter."""
    try:
        open_model(spec, root=recipe.root, adapter=True)
    except RequestError as error:
        return [Problem(p.what, p.where or entry.where, p.hint) for p in error.problems]
    return []


def _is_of_images(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a model which sees images and writes no text."""
    contrastive = str(config.get("model_type", "")).startswith(CONTRASTIVE)
    return "image_size" in config or ("vision_config" in config and contrastive)
