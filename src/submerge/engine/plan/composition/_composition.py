"""What a composed model adds to a plan: its specialists, their own modules, and their placeholders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from submerge.engine.plan.composition._architecture import architecture_of
from submerge.engine.plan.composition._embeddings_only import more_than_embeddings
from submerge.engine.plan.composition._own_modules import own_modules
from submerge.engine.plan.composition._placeholder import (
    KINDS,
    PlaceholderToken,
    clashing_placeholders,
    find_placeholder,
)
from submerge.engine.plan.inputs import Inputs, Specialist
from submerge.engine.plan.tensors import TensorPlan
from submerge.engine.plan.tokens import SharedTokens, share_tokens
from submerge.errors import Problem, RequestError, few
from submerge.names import is_composite
from submerge.recipe import ModalityTokens, Recipe
from submerge.store import MODALITY_GATE, SHARED_PARTS, Checkpoint, GateRecord, TensorEntry

__all__ = ["Composition", "SpecialistPlan", "plan_composition", "stream_warnings"]

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class SpecialistPlan:
    """One specialist of a composed model: where its parts are, and how its inputs stand in a text.

    Attributes:
        specialist: the positions of its models.
        modules: the tensors that are its own, by their names in its files.
        placeholder: of its inputs.
        placeholder_id: of the placeholder, in the shared vocabulary.
    """

    specialist: Specialist
    modules: Mapping[str, TensorEntry]
    placeholder: PlaceholderToken
    placeholder_id: int

    @property
    def modality(self) -> str:
        """The name of its modality."""
        return self.specialist.modality

    def owner(self, name: str, models: Sequence[Checkpoint]) -> int:
        """Return the position of the model that has one of its own tensors as it was trained."""
        stream = self.specialist.stream
        return self.specialist.model if stream is None or name not in models[stream].edited else stream

    @property
    def parts(self) -> tuple[int, bool, int | None]:
        """What its parts follow from: specialists of one model that was trained in one way share them."""
        return self.specialist.model, self.specialist.decoupled, self.specialist.stream

    def described(self, model: Checkpoint) -> dict[str, Any]:
        """Return what `submerge.json` says of it."""
        return {
            "name": self.modality,
            "model": model.label,
            "architectures": [name] if (name := architecture_of(model.config or {})) else [],
            "kind": self.placeholder.kind,
            "placeholder": self.placeholder.text,
            "placeholder_id": self.placeholder_id,
        }


@dataclass(frozen=True)
class Composition:
    """One language model and its specialists, in the recipe's order, with the tokenizer that they share."""

    specialists: tuple[SpecialistPlan, ...]
    tokens: SharedTokens
    modality_tokens: ModalityTokens = "own"

    @property
    def has_streams(self) -> bool:
        """Whether tokens of a modality run with other parameters than text."""
        return self.modality_tokens == "own"

    @property
    def warnings(self) -> list[str]:
        """What of the specialists deserves a look."""
        return [f"{own.modality}: {what}" for own in self.specialists for what in self._doubts(own)]

    def _doubts(self, own: SpecialistPlan) -> Iterator[str]:
        """Yield what a processor cannot use, and where tokens run with others than they were trained with."""
        mark = own.placeholder
        if mark.token and (count := mark.text.count(mark.token)) != 1:
            yield f"placeholder {mark.text!r} has {count or 'no'} {mark.token!r}: load_processor refuses it"
        if own.placeholder_id in self.tokens.of_text:
            token = f"{mark.token or mark.text!r} ({own.placeholder_id})"
            yield f"its placeholder {token} is a token of texts, too: each of them stands for an input"
        if own.modality in KINDS and mark.kind != own.modality:
            yield f"its configuration has a placeholder of the kind {mark.kind}: that is what it takes"
        if own.specialist.decoupled and not self.has_streams:
            yield "its tokens were trained with the base's parameters, and run with the merged ones"

    @property
    def stored(self) -> dict[int, SpecialistPlan]:
        """The specialists whose parts are stored, by their numbers: the first of those that share them."""
        first = {own.parts: number for number, own in reversed([*enumerate(self.specialists)])}
        return {number: self.specialists[number] for number in sorted(first.values())}

    def record(self, models: Sequence[Checkpoint]) -> GateRecord:
        """Return what `submerge.json` says of the gate."""
        names = {own.parts: own.modality for own in self.stored.values()}
        tasks = tuple(
            s.described(models[s.specialist.model])
            | ({} if (first := names[s.parts]) == s.modality else {SHARED_PARTS: first})
            for s in self.specialists
        )
        return GateRecord(MODALITY_GATE, tasks, {"modality_tokens": self.modality_tokens})


def plan_composition(recipe: Recipe, inputs: Inputs) -> Composition:
    """Return the specialists of a composed model.

    `inputs` are the models under the base's names. Raises `RequestError` with all that is wrong with them.
    """
    base = inputs.reference_model
    problems = _composite_base(base)
    modules: list[dict[str, TensorEntry]] = []
    placeholders: list[PlaceholderToken] = []
    for specialist in inputs.specialists:
        model = inputs.models[specialist.model]
        own, refusals = own_modules(model, base, specialist.where)
        modules.append(own)
        if not refusals:
            refusals = [
                *more_than_embeddings(model, specialist.where),
                *_without_processor(model),
                *_without_class(model),
            ]
            placeholder, unnamed = find_placeholder(specialist, model)
            placeholders += [placeholder] if placeholder else []
            refusals += unnamed
        problems += [*refusals, *_edited_twice(specialist, inputs, own)]
    if problems:
        raise RequestError(problems)
    tokens = _shared_tokens(inputs, placeholders)
    plans = tuple(
        SpecialistPlan(specialist, own, placeholder, tokens.ids(number).get(placeholder.id, placeholder.id))
        for number, (specialist, own, placeholder) in enumerate(
            zip(inputs.specialists, modules, placeholders, strict=True)
        )
    )
    problems = [problem for own in plans for problem in _without_token(own, tokens, inputs)]
    problems += clashing_placeholders({own.modality: own.placeholder_id for own in plans})
    if problems:
        raise RequestError(problems)
    return Composition(plans, tokens, recipe.modality_tokens)


def _shared_tokens(inputs: Inputs, placeholders: Sequence[PlaceholderToken]) -> SharedTokens:
    """Return the tokenizer that all share; raise `RequestError` where there can be none."""
    named = [(own.modality, inputs.models[own.model]) for own in inputs.specialists]
    texts = [
        own.placeholder or placeholder.token
        for own, placeholder in zip(inputs.specialists, placeholders, strict=True)
    ]
    tokens, problems = share_tokens(inputs.reference_model, named, texts)
    if problems:
        raise RequestError(problems)
    return tokens


def _without_token(own: SpecialistPlan, tokens: SharedTokens, inputs: Inputs) -> list[Problem]:
    """Return a problem where no token of the output has a placeholder's id."""
    if own.placeholder_id < tokens.rows:
        return []
    config = inputs.models[own.specialist.model].path / "config.json"
    kind, id_ = own.placeholder.kind, own.placeholder.id
    what = f"its placeholder of the kind {kind} is {id_}, and no token has this id"
    return [Problem(what, str(config), "write the id that its tokenizer gives the placeholder")]


def _composite_base(base: Checkpoint) -> list[Problem]:
    """Return a problem where the base is a multimodal model itself."""
    if not is_composite(base.config):
        return []
    what = "the base of a composed model is a language model, and its configuration has parts of others"
    return [Problem(what, base.label, "give the language model that the specialists were made of")]


def _without_processor(model: Checkpoint) -> list[Problem]:
    """Return a problem where a specialist has nothing that makes inputs of images, sounds or videos."""
    if not model.path.is_dir() or {str(file) for file in model.side_files} & set(PROCESSORS):
        return []
    what = f"there is no processor: none of {', '.join(PROCESSORS)}"
    hint = "copy these files beside its weights (transformers: processor.save_pretrained)"
    return [Problem(what, str(model.path), hint)]


def _without_class(model: Checkpoint) -> list[Problem]:
    """Return a problem where it is not known which class of transformers a specialist is of."""
    if architecture_of(model.config or {}):
        return []
    what = "neither its architectures nor its model_type say which class of transformers it is"
    return [Problem(what, str(model.path / "config.json"), "write the class's name into 'architectures'")]


def stream_warnings(inputs: Inputs, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return which changes of tables are left out, that adapters for the tokens of modalities have.

    What tokens of modalities are embedded as are features, and what is said of them in training is text: one
    table of embeddings, and one head, are merged for all tokens.
    """
    tables = [t.name for t in tensors if t.action == "merge" and t.table and not t.has_streams]
    warnings = []
    for model in (inputs.models[own.stream] for own in inputs.specialists if own.stream is not None):
        if left := [name for name in tables if name in model.edited]:
            what = f"changes {few(left)}, which is left out: all tokens have the merged embeddings and head"
            warnings.append(f"{model.label}: {what}")
    return warnings


def _edited_twice(
    specialist: Specialist, inputs: Inputs, modules: Mapping[str, TensorEntry]
) -> list[Problem]:
    """Return a problem where both adapters of a specialist change its own modules."""
    if specialist.stream is None or specialist.stream == specialist.model:
        return []
    first, second = (inputs.models[i].edited for i in (specialist.model, specialist.stream))
    both = [name for name in modules if name in first and name in second]
    if not both:
        return []
    what = f"both adapters of {specialist.modality} change its own modules: {few(both)}"
    hint = "train one of them without these, or take them out of its file and of its modules_to_save"
    return [Problem(what, specialist.where or "models", hint)]
