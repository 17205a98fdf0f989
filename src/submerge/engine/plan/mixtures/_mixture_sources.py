"""What the models of a mixture of experts must have: feed-forward blocks of one shape, and one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.mixtures._mixture_forms import PROJECTIONS, MixtureForm
from submerge.errors import Problem, few
from submerge.names import is_buffer, layer_of, layer_stacks
from submerge.store import (
    Checkpoint,
    compare_vocabularies,
    layer_count,
    read_vocabulary,
    tied_embeddings,
)

__all__ = [
    "LAYERS",
    "count_layers",
    "dense_name",
    "is_feed_forward",
    "source_problems",
    "vocabulary_findings",
]

LAYERS = "model.layers"
"""The stack of layers in the files of all models that mixtures are made of."""
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight")
_HEAD = "lm_head.weight"


def dense_name(layer: int, projection: str) -> str:
    """Return the name of a weight of a dense model's feed-forward block."""
    return f"{LAYERS}.{layer}.mlp.{projection}.weight"


def count_layers(model: Checkpoint) -> int:
    """Return how many layers a model has, as its configuration says, or else its tensors."""
    said = layer_count(model.config)
    return layer_stacks(model.tensors).get(LAYERS, 0) if said is None else said


def is_feed_forward(name: str) -> bool:
    """Return whether a tensor is of a dense model's feed-forward block."""
    place = layer_of(name)
    return place is not None and ".mlp." in name


def source_problems(form: MixtureForm, inputs: Inputs) -> list[Problem]:
    """Return what the base and the experts lack, or have that the architecture has no place for.

    `inputs` are the models under the base's names.
    """
    base = inputs.reference_model
    problems = [*_base_problems(form, base)]
    if problems:
        return problems
    return [p for model in inputs.models for p in _block_problems(model, base)]


def _base_problems(form: MixtureForm, base: Checkpoint) -> Iterator[Problem]:
    """Yield what is wrong with the model that gives all but the experts."""
    if type((base.config or {}).get("num_attention_heads")) is not int:
        hint = "complete its config.json"
        yield Problem("its config.json does not say num_attention_heads", base.label, hint)
        return
    count = count_layers(base)
    if not count:
        hint = "give a complete language model, whose tensors have the names of transformers"
        yield Problem("it has no layers", base.label, hint)
        return
    needed = [*_OUTSIDE, *(() if tied_embeddings(base.config) else (_HEAD,))]
    needed += [f"{LAYERS}.{i}.{name}" for i in range(count) for name in sorted(_common(form))]
    if lacking := [name for name in needed if name not in base.tensors]:
        hint = "give a complete language model, whose tensors have the names of transformers"
        yield Problem(f"it lacks tensors that a mixture has from its base: {few(lacking)}", base.label, hint)
    if others := [name for name in base.tensors if not _has_place(form, name, count)]:
        hint = "choose another architecture, or another base"
        yield Problem(f"{form.name} has no place for {few(others)}", base.label, hint)


def _common(form: MixtureForm) -> Iterable[str]:
    """Return what a layer has in any case beside its feed-forward block."""
    return (name for name in form.layer if not name.endswith(".bias"))


def _has_place(form: MixtureForm, name: str, count: int) -> bool:
    """Return whether a tensor of the base is one of the mixture's, or gives a block its shape."""
    place = layer_of(name)
    if is_buffer(name):
        return True
    if place is None:
        return name in (*_OUTSIDE, _HEAD)
    stack, layer = place
    inner = name.removeprefix(f"{stack}.{layer}.")
    blocks = {f"mlp.{projection}.weight" for projection in PROJECTIONS}
    return stack == LAYERS and layer < count and inner in form.layer | blocks


def _block_problems(model: Checkpoint, base: Checkpoint) -> Iterator[Problem]:
    """Yield what is wrong with the feed-forward blocks of one model."""
    count, own = count_layers(base), count_layers(model)
    if own != count:
        what = f"it has {own} layers, and {base.label} has {count}"
        yield Problem(what, model.label, "experts are models of the base's size")
        return
    names = [dense_name(layer, projection) for layer in range(count) for projection in PROJECTIONS]
    if lacking := [name for name in names if name not in model.tensors]:
        yield Problem(f"it lacks {few(lacking)}", model.label, "give a complete model")
        return
    unlike = [name for name in names if name in base.tensors and _differ(model, base, name)]
    if unlike:
        shapes = f"{list(model.tensors[unlike[0]].shape)} for {list(base.tensors[unlike[0]].shape)}"
        what = f"shapes differ from {base.label}'s: {few(unlike)} ({shapes})"
        yield Problem(what, model.label, "experts are models of the base's size")
    if others := [name for name in names if not model.tensors[name].is_float]:
        yield Problem(f"{few(others)} are no floats", model.label, "give models in float formats")
    biases = [n for n in model.tensors if is_feed_forward(n) and n not in names and not is_buffer(n)]
    if biases:
        yield Problem(f"experts have no place for {few(biases)}", model.label, "give models without them")


def _differ(model: Checkpoint, base: Checkpoint, name: str) -> bool:
    return model.tensors[name].shape != base.tensors[name].shape


def vocabulary_findings(inputs: Inputs) -> tuple[list[Problem], list[str]]:
    """Return which models have another tokenizer than the base's, and of which some tokens are others.

    A mixture reads the base's tokens alone. An expert that was trained on most of them under other ids, or
    on other ones, never saw what it gets.
    """
    base = inputs.reference_model
    ours = read_vocabulary(base.tokenizer.folder)
    problems: list[Problem] = []
    warnings: list[str] = []
    for model in inputs.models[1:]:
        theirs = read_vocabulary(model.tokenizer.folder)
        if ours is None or theirs is None or (difference := compare_vocabularies(ours, theirs)).equal:
            continue
        text = difference.describe(base.label, model.label)
        size = len(ours.tokens or ())
        if difference.comparable and 2 * (difference.moved + difference.missing_in_b) > size:
            hint = "give experts of the base's tokenizer"
            problems.append(Problem(f"it has another tokenizer than the base: {text}", model.label, hint))
        else:
            warnings.append(f"{model.label}: as an expert it reads the base's tokens: {text}")
    return problems, warnings
