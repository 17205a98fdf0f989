"""A specialist's own processor of transformers, run on its own inputs and its own placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from inspect import signature
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.serving._images import read_frames, read_images
from submerge.serving._sounds import read_sounds

__all__ = ["TEXT_OUTPUTS", "SpecialistProcessor"]

ARGUMENTS = {"image": "images", "video": "videos"}
"""What transformers' processors call the inputs of a kind, where it is not the kind's own name."""
ENCODERS = {"image": "image_processor", "video": "video_processor", "audio": "feature_extractor"}
"""The attribute of a processor that makes a kind's inputs into arrays."""
READERS = {"image": read_images, "video": read_frames, "audio": read_sounds}
"""What brings a kind's inputs into the form that processors take."""
_NO_TENSORS = {"return_tensors": None}
"""For ids of texts, which are not used, and differ in length from text to text."""
TEXT_OUTPUTS = {"mm_token_type_ids", "text_replacement_offsets"}
"""What a processor adds to the outputs of its tokenizer that is about the text."""
STAND_INS = range(0xE000, 0xF900)
"""Characters of the private use area, which texts hardly have."""


@dataclass(frozen=True)
class SpecialistProcessor:
    """The processor of one modality's specialist.

    Attributes:
        name: of the modality.
        kind: `image`, `audio` or `video`, or another: which arguments its processor takes.
        placeholder: the token that stands for an input in a text.
        placeholder_id: its id in the shared tokenizer.
        processor: of the specialist's own class, with the shared tokenizer.
        names: of its inputs, from those of the composed model to those of its class.
        markup: how a chat writes an input; empty where the recipe does not say it.
    """

    name: str
    kind: str
    placeholder: str
    placeholder_id: int
    processor: Any
    names: Mapping[str, str]
    markup: str = ""

    @property
    def argument(self) -> str:
        """What a composed model's processor calls these inputs."""
        return ARGUMENTS.get(self.name, self.name)

    @property
    def _own_argument(self) -> str:
        """What the specialist's processor calls them."""
        return ARGUMENTS.get(self.kind, self.kind)

    @property
    def _written(self) -> str:
        """What its processor looks for where an input stands, which need not be the token of a feature.

        Aya Vision's writes `<|IMG_PATCH|>` for each feature in the place of one `<image>`.
        """
        token = getattr(self.processor, f"{self.kind}_token", None)
        return token if isinstance(token, str) and token else self.placeholder

    def accepts(self, option: str) -> bool:
        """Return whether the processor takes this option for its kind of inputs."""
        by_kind = getattr(self.processor, "valid_processor_kwargs", None)
        encoder = getattr(self.processor, ENCODERS.get(self.kind, ""), None)
        of_kind = _annotations(by_kind).get(f"{self._own_argument}_kwargs")
        of_encoder = getattr(encoder, "valid_kwargs", None)
        return any(option in _annotations(typed) for typed in (of_kind, of_encoder))

    def expand(
        self,
        texts: Sequence[str],
        inputs: Any,
        options: Mapping[str, Any],
        others: Sequence[str] = (),
    ) -> tuple[list[str], dict[str, Any]]:
        """Return the texts with a placeholder for every token of the inputs, and the encoder's inputs.

        The processor writes the placeholders, and they are read from what it calls its tokenizer with. It
        sees only the texts that have a placeholder of its own, because some processors count texts. The
        placeholders of `others` are hidden from it, because a class that takes two kinds of inputs asks for
        both.

        Raises:
            RequestError: the processor takes no such inputs beside texts, as that of Voxtral; an image
                cannot be read, or a sound has several channels or integers; or it refuses the inputs itself.
        """
        if self._own_argument not in signature(type(self.processor).__call__).parameters:
            raise self._unfit(f"takes no {self._own_argument} beside texts")
        if read := READERS.get(self.kind):
            inputs = read(inputs, self.processor, f"modality {self.name}")
        own = [number for number, text in enumerate(texts) if self.placeholder in text]
        hidden = _stand_ins(texts, others)
        recorder, processor = _RecordingTokenizer(self.processor.tokenizer), copy(self.processor)
        processor.tokenizer = recorder
        written = {self.placeholder: self._written}
        try:
            outputs = processor(
                text=[_replaced(_replaced(texts[number], hidden), written) for number in own],
                **{self._own_argument: inputs, f"{self._own_argument}_kwargs": dict(options)},
                text_kwargs=dict(_NO_TENSORS),
            )
        except (LookupError, TypeError, ValueError) as error:
            what = f"{type(self.processor).__name__} refuses the inputs: {error}"
            hint = "give them as to the specialist's own processor"
            raise RequestError(Problem(what, f"modality {self.name}", hint)) from error
        expanded = list(texts)
        shown = {character: placeholder for placeholder, character in hidden.items()}
        for number, text in zip(own, self._tokenized(recorder, len(own)), strict=True):
            expanded[number] = _replaced(text, shown)
        features = {key: outputs[key] for key in outputs if key not in recorder.outputs | TEXT_OUTPUTS}
        shared = {own_name: name for name, own_name in self.names.items()}
        return expanded, {shared.get(key, key): value for key, value in features.items()}

    def _tokenized(self, recorder: _RecordingTokenizer, count: int) -> list[str]:
        """Return the texts of the last call with as many."""
        calls = [texts for texts in recorder.calls if len(texts) == count]
        if not calls:
            raise self._unfit("does not tokenize the texts that it is given")
        return calls[-1]

    def _unfit(self, reason: str) -> RequestError:
        what = f"{type(self.processor).__name__} {reason}"
        return RequestError(Problem(what, f"modality {self.name}", "make the model's inputs yourself"))


class _RecordingTokenizer:
    """A tokenizer that keeps the texts that it is called with, and the names of what it returned."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.calls: list[list[str]] = []
        self.outputs: set[str] = set()

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.calls.append([text] if isinstance(text, str) else list(text))
        encoded = self._tokenizer(text, *args, **kwargs)
        self.outputs.update(encoded)
        return encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def _annotations(typed: Any) -> Mapping[str, Any]:
    """Return what a TypedDict of transformers has, or nothing for None."""
    return getattr(typed, "__annotations__", {})


def _stand_ins(texts: Sequence[str], placeholders: Sequence[str]) -> dict[str, str]:
    """Return for each placeholder a character that is in none of the texts."""
    used = set().union(*texts)
    unused = (chr(code) for code in STAND_INS if chr(code) not in used)
    return dict(zip(placeholders, unused, strict=False))


def _replaced(text: str, pairs: Mapping[str, str]) -> str:
    """Return a text with each key replaced by its value."""
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text
