"""The model card of a merged model, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from submerge.engine.plan import common_licence

__all__ = ["model_card"]

_ARGUMENTS = {"image": "images", "video": "videos"}
"""What a composed model's processor calls inputs, where that is not the modality's own name."""
_BLANK = {
    "image": "np.zeros((224, 224, 3), np.uint8)",
    "video": "np.zeros((8, 224, 224, 3), np.uint8)",
    "audio": "np.zeros(16000, np.float32)",
}
"""An input of each kind without content: a picture [h, w, 3], 8 frames of it, a second of sound."""
_ALONE = "Given this folder's path, transformers alone (`from_pretrained`, `pipeline(model=…)`) loads"
"""No key of a config.json makes transformers ask for another library, but such as run code of the folder."""


def model_card(
    *,
    name: str,
    method: str,
    source: str,
    models: Sequence[str],
    base: str | None,
    fetched: Collection[str],
    recipe: str,
    adapter: bool,
    version: str,
    tasks: Sequence[str] = (),
    usage: Sequence[str] = (),
    specialists: Sequence[Mapping[str, Any]] = (),
    projectors: Sequence[str] = (),
    licences: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> str:
    """Return the text of README.md: front matter with `base_model_relation`, then the recipe.

    `tasks` are those of the merge's gate, if it has one: the card says how to load it, and shows its `usage`,
    as `GateSpec` has it. So it does for the `specialists` of a composed model, each as `submerge.json` has
    it, and for tasks whose `projectors` are mixed.

    Only models that were `fetched` from the Hub stand in the front matter, for the Hub looks them
    up; local paths are listed in the text. `licences` are what the cards of models say of theirs, if they
    do: where all say the same, so does this one. It is never guessed.
    """
    named = list(dict.fromkeys([*([base] if base else []), *models]))
    lines = [
        "---",
        yaml.safe_dump(
            {**common_licence(licences), **_front_matter([m for m in named if m in fetched], adapter)},
            sort_keys=False,
        ).rstrip(),
        "---",
        f"# {name}",
        "",
        f"Merged with Submerge {version}, without training, by {method} ({source}).",
        "",
        "Models:",
        "",
        *(f"* `{m}`" + (" (base)" if m == base else "") for m in named),
        "",
        *_licence_lines(licences),
        *(_gated(name, tasks, usage) if tasks else ()),
        *(_composed(name, specialists) if specialists else ()),
        *(_mixed(name, projectors) if projectors else ()),
        "Recipe:",
        "",
        "```yaml",
        recipe.rstrip(),
        "```",
        "",
        "What was done to each tensor, and the digests of inputs and output, are in `submerge.json`.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(repos: Sequence[str], adapter: bool) -> dict[str, object]:
    """Return what the Hub reads of the card; `repos` are the models that it has, the base first."""
    front: dict[str, object] = {}
    if repos:
        front["base_model"] = [repo.partition("@")[0] for repo in repos]
        front["base_model_relation"] = "adapter" if adapter else "merge"
    front["library_name"] = "peft" if adapter else "transformers"
    front["tags"] = ["merge", "submerge", *(["lora"] if adapter else [])]
    return front


def _licence_lines(licences: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return what licences models state, where that is not one for all."""
    if common_licence(licences) or not any(licences.values()):
        return []
    lines = [
        f"* `{name}`: {fields.get('license_name') or fields.get('license') or 'not stated'}"
        + (f" ({link})" if (link := fields.get("license_link")) else "")
        for name, fields in licences.items()
    ]
    return ["Licences, as the cards of the models state them:", "", *lines, ""]


def _gated(name: str, tasks: Sequence[str], usage: Sequence[str]) -> list[str]:
    """Return how a merge with a gate is loaded."""
    listed = ", ".join(f"`{task}`" for task in tasks)
    return [
        f"It serves {len(tasks)} tasks as one model: {listed}. With its gate it is loaded by Submerge:",
        "",
        "```python",
        "import submerge  # which needs transformers here",
        "",
        f"model = submerge.load({name!r})  # this folder; a transformers model",
        *(line.replace("{task}", repr(tasks[0])) for line in usage),
        "```",
        "",
        f"{_ALONE} one plain checkpoint, which knows no tasks, without a word:",
        "give a pipeline the `model` above.",
        "",
    ]


def _composed(name: str, specialists: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how a composed model is loaded and prompted: code that runs, on inputs without content."""
    prompt = " ".join(["Describe", *(own["placeholder"] for own in specialists)])
    arguments = {_ARGUMENTS.get(own["name"], own["name"]): own["kind"] for own in specialists}
    inputs = [f"    {key}=[{_BLANK.get(kind, _BLANK['image'])}]," for key, kind in arguments.items()]
    rate = ["    sampling_rate=16000,"] if "audio" in arguments.values() else []
    return [
        "It is one language model with a specialist for each modality:",
        "",
        *(
            f"* `{s['name']}`: encoder and projector of a `{', '.join(s['architectures'])}`"
            for s in specialists
        ),
        "",
        "```python",
        "import numpy as np",
        "import submerge  # which needs transformers here",
        "",
        f"model = submerge.load({name!r})  # this folder; a transformers model",
        f"processor = submerge.load_processor({name!r})",
        "inputs = processor(  # give yours; files and PIL images, too",
        f"    text={prompt!r},",
        *inputs,
        *rate,
        '    return_tensors="pt",',
        ")",
        "answer = model.generate(**inputs, max_new_tokens=64)",
        "print(processor.batch_decode(answer[:, inputs['input_ids'].shape[1] :], skip_special_tokens=True))",
        "```",
        "",
        "Each input has its placeholder in the text; any subset will do, in any order, several of each.",
        "",
        f"{_ALONE} the merged language model.",
        "",
    ]


def _mixed(name: str, tasks: Sequence[str]) -> list[str]:
    """Return how a model whose projectors are mixed is loaded."""
    listed = ", ".join(f"`{task}`" for task in tasks)
    return [
        f"It has the projectors of {len(tasks)} tasks: {listed}. For each image their outputs are mixed,",
        "by how near it is to the images of each task:",
        "",
        "```python",
        "import submerge  # which needs transformers here",
        "",
        f"model = submerge.load({name!r})  # this folder; a transformers model",
        "out = model(**inputs)  # as the processor of this folder gives them",
        "out.tasks, out.shares  # of each image",
        f"model(**inputs, task={tasks[0]!r})  # where the task is known",
        "```",
        "",
        f"{_ALONE} a model with the mean of the projectors, which may read no images, without a word.",
        "",
    ]
