"""A composed model in use: each token runs with the parameters of its modality, wherever its id stands."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch

from submerge.errors import Problem, RequestError, few
from submerge.gating import Gate, GatedModel, TokenAssignment
from submerge.serving._attach import check_names
from submerge.serving._changed_encoders import changed_encoders
from submerge.serving._controller import Call, Controller
from submerge.serving._encoder import ENCODERS, Encoder, Encoders, encoder_of, read_encoder
from submerge.serving._folder import Folder, copy_beside
from submerge.serving._input_names import input_kind, input_names
from submerge.serving._modality_folder import ModalityFolder, Read, open_modality_folder
from submerge.serving._prompt import Prompt
from submerge.serving._streams import stream_updates, tell_heads

__all__ = ["ModalityController"]

Inputs: TypeAlias = tuple[dict[str, Any], ...]
"""Each specialist's inputs, by the names of its class."""


class ModalityController(Controller):
    """Puts the features of inputs at their placeholders, and labels each token by its modality.

    What the gate does follows from the ids of every forward. In a `generate` the features are computed once,
    of the prompt, and what it adds is text.

    Examples:
        >>> from submerge.serving import CONTROLLERS, ModalityController
        >>> ModalityController in CONTROLLERS.values()
        True
    """

    members: ClassVar[Mapping[str, Any]] = {"modalities": property(lambda self: self.controller.names)}

    def __init__(self, folder: ModalityFolder, gated: GatedModel, encoders: Encoders) -> None:
        self.path, self.names, self.streams = folder.path.absolute(), folder.names, folder.streams
        self.inputs = input_names(folder.tasks)
        self.gated, self.encoders = gated, encoders
        self.is_gated = bool(gated.modules)
        self._prompt: Prompt | None = None
        self._lent: dict[str, Any] = {}

    @classmethod
    def open(cls, path: Path) -> ModalityFolder:
        return open_modality_folder(path)

    @classmethod
    def configured(cls, folder: Folder, settings: Mapping[str, Any]) -> Folder:
        if settings:
            what = f"a composed model has no settings: {few(settings)}"
            hint = (
                "load takes dtype, device and attn_implementation; what the gate does is said in the recipe"
            )
            raise RequestError(Problem(what, str(folder.path), hint))
        return folder

    @classmethod
    def attach(
        cls, model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
    ) -> ModalityController:
        assert isinstance(folder, ModalityFolder)
        check_names(model, folder, names, partial=partial)
        gated = GatedModel(gate)
        with folder.reading() as read:
            gated.add(model, stream_updates(model, folder, gate, names, read), by_token=True)
            tell_heads(model, gated)
            encoders = Encoders(_read_encoders(folder, read))
        setattr(model, ENCODERS, encoders)
        return cls(folder, gated, encoders)

    @classmethod
    def arguments(cls, folder: Folder) -> tuple[str, ...]:
        return tuple(name for names in input_names(folder.tasks) for name in names)

    def save(self, folder: Path) -> None:
        """Copy all but the language model: bank, manifest, the specialists' files, the tokenizer.

        The encoders are those of the bank; a warning names any that were changed since they were loaded.
        """
        copy_beside(self.path, folder)
        if changed := changed_encoders(self.path, self._listed):
            what = f"the encoders of {few(changed, 9)} were changed, and the copy has those of the bank"
            warnings.warn(f"{what}: keep their state_dict, model.encoders[…].state_dict()", stacklevel=3)

    def request(self, arguments: MutableMapping[str, Any]) -> Inputs:
        """Return each specialist's inputs; raise `RequestError` for those of a modality without one."""
        known = {name for names in self.inputs for name in names}
        given = {name: value for name, value in arguments.items() if value is not None}
        unknown = [name for name in given if input_kind(name) and name not in known]
        if unknown:
            what = f"there is no specialist for {few(unknown)}"
            hint = f"there are those of {few(self.names, 9)}, which take {few(sorted(known), 9)}"
            raise RequestError(Problem(what, str(self.path), hint))
        if (own := known & given.keys()) and given.get("inputs_embeds") is not None:
            what = f"inputs_embeds beside {few(sorted(own))}, whose features are put in embeddings of ids"
            hint = "give input_ids with the placeholders, and no embeddings"
            raise RequestError(Problem(what, str(self.path), hint))
        for name in known & arguments.keys():
            del arguments[name]
        return tuple(
            {own: given[name] for name, own in names.items() if name in given} for names in self.inputs
        )

    def begin(self, model: Any, inputs: dict[str, Any], request: Inputs) -> Call:
        ids: Any = inputs.get("input_ids")
        # no forward of a `generate`, but a call of its own, as in a streamer: the ids are all that there is
        if self._prompt is None or any(request):
            prompt, past = self._encoded(model, ids, request), 0
        else:
            prompt, past = self._prompt, _cached(inputs)
        part = prompt.part(ids, past) if prompt is not None and ids is not None else None
        if part is None:
            return Call(inputs, None)
        embeddings = part.embeddings
        if (length := embeddings.shape[1]) < ids.shape[1]:  # what was generated follows
            embeddings = torch.cat([embeddings, model.get_input_embeddings()(ids[:, length:])], dim=1)
        assignment = TokenAssignment(part.labels, self.streams) if self.is_gated else None
        return Call({**inputs, "input_ids": None, "inputs_embeds": embeddings}, assignment)

    def begin_generate(self, model: Any, inputs: dict[str, Any], request: Inputs) -> Call:
        ids: Any = inputs.get("input_ids")
        if self._prompt is not None and not any(request) and ids is not None and self._prompt.part(ids, 0):
            return Call(inputs, None)  # a draft of the model for itself goes on from the prompt in force
        if self._lent and not any(request):
            request = self.request(dict(self._lent))
        prompt = self._generated_from(model, inputs, request)
        context = self._prompted(prompt or Prompt.of_text())
        assistant = getattr(inputs.get("assistant_model"), "controller", None)
        if isinstance(assistant, ModalityController):
            context = assistant._lending(self._named(request), context)
        return Call(inputs, None, context=context)

    def _named(self, request: Inputs) -> dict[str, Any]:
        """Return a request's inputs by the names that a call of the composed model has for them."""
        pairs = zip(self.inputs, request, strict=True)
        return {name: own[inner] for names, own in pairs for name, inner in names.items() if inner in own}

    @contextmanager
    def _lending(self, inputs: dict[str, Any], context: AbstractContextManager[None]) -> Iterator[None]:
        """Let a model that drafts for another have its inputs, with which it is not called."""
        before, self._lent = self._lent, inputs
        try:
            with context:
                yield
        finally:
            self._lent = before

    @contextmanager
    def _prompted(self, prompt: Prompt) -> Iterator[None]:
        """Let each forward inside have its part of a prompt."""
        before, self._prompt = self._prompt, prompt
        try:
            yield
        finally:
            self._prompt = before

    def _generated_from(self, model: Any, inputs: Mapping[str, Any], request: Inputs) -> Prompt | None:
        """Return the prompt of a `generate`, which may go on from a cache.

        Then ids may be those of all positions or those of new ones, and inputs those of all or of new ones.
        """
        ids: Any = inputs.get("input_ids")
        past, mask = _cached(inputs), inputs.get("attention_mask")
        if past and ids is not None and mask is not None and mask.shape[1] > ids.shape[1]:
            return self._encoded(model, ids, request, start=past)
        try:
            return self._encoded(model, ids, request)
        except RequestError:
            if not past or ids is None:
                raise
            return self._encoded(model, ids[:, past:], request, start=past)

    def _encoded(self, model: Any, ids: Any, request: Inputs, start: int = 0) -> Prompt | None:
        """Return a prompt with the features of inputs in place; None for one of text alone."""
        if ids is None:
            if any(request):
                what = f"{few(name for own in request for name in own)} without input_ids"
                raise RequestError(Problem(what, type(model).__name__, "give the ids with the placeholders"))
            return None
        if ids.ndim != 2:
            what = f"input_ids have the shape {list(ids.shape)}"
            raise RequestError(Problem(what, type(model).__name__, "give a batch [B, L] of prompts"))
        labels = torch.zeros_like(ids)
        for label, encoder in enumerate(self._listed, 1):
            labels[ids == encoder.placeholder] = label
        used = [n for n, own in enumerate(request) if own or (labels == n + 1).any()]
        if not used:
            return None
        embeddings = model.get_input_embeddings()(ids)  # [B, L, d]
        for n in used:
            self._check_given(n, request[n], int((labels == n + 1).sum()))
            features = self._listed[n].embeddings(ids, request[n])
            embeddings = torch.where((labels == n + 1).unsqueeze(-1), features.to(embeddings), embeddings)
        return Prompt(ids, labels, embeddings, start)

    def _check_given(self, number: int, given: Mapping[str, Any], placeholders: int) -> None:
        """Raise `RequestError` where a prompt has placeholders of a modality, and there is no input of it."""
        if not given:
            name = self.names[number]
            what = f"the prompt has {placeholders} placeholders, and 0 features: there is no input"
            hint = f"give {few(self.inputs[number], 9)}, as the processor of the folder returns them"
            raise RequestError(Problem(what, f"modality {name}", hint))

    @property
    def _listed(self) -> list[Encoder]:
        return list(self.encoders)  # type: ignore[arg-type]


def _read_encoders(folder: ModalityFolder, read: Read) -> list[Encoder]:
    """Return each specialist's encoder; modalities of one specialist have one model."""
    encoders: list[Encoder] = []
    for n, (task, owner) in enumerate(zip(folder.tasks, folder.owners, strict=True)):
        if owner < n and folder.config(n) == folder.config(owner):
            encoders.append(encoder_of(task, encoders[owner].model))
        else:
            own = {name: read(stored) for name, stored in folder.modules[owner].items()}
            encoders.append(read_encoder(task, folder.files(n), own, folder.loading))
    return encoders


def _cached(inputs: Mapping[str, Any]) -> int:
    """Return the number of positions that a cache holds."""
    cache = inputs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
