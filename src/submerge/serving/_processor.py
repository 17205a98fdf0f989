"""One processor for a composed model, which its specialists' own processors work for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from submerge.deferred import required
from submerge.errors import Problem, RequestError, few
from submerge.serving._chat import as_lists, as_strings, is_batch, takes_lists
from submerge.serving._media import count_inputs, counts_by_text, local_inputs, without_empty
from submerge.serving._specialist_processor import TEXT_OUTPUTS, SpecialistProcessor
from submerge.store import MANIFEST, MODALITIES

__all__ = ["ModalityProcessor"]


class ModalityProcessor:
    """The processor of a composed model: texts with any inputs of its modalities, in any order.

    It is called like transformers' processors, and each specialist's own processor does its part: it says how
    many placeholder tokens an input has, and makes the encoder's inputs. It is no `ProcessorMixin`, whose
    attributes and files are those of one tokenizer and at most one encoder of each kind.

    Attributes:
        tokenizer: of transformers, shared by all.
        specialists: by modality.

    Examples:
        >>> import submerge
        >>> from submerge.serving import ModalityProcessor
        >>> def ask(folder: str, question: str, image: object) -> object:
        ...     processor: ModalityProcessor = submerge.load_processor(folder)
        ...     return processor(text=question, images=[image], return_tensors="pt")
    """

    def __init__(self, tokenizer: Any, specialists: Sequence[SpecialistProcessor], manifest: str) -> None:
        self.tokenizer = tokenizer
        self.specialists = {specialist.name: specialist for specialist in specialists}
        self._manifest = manifest

    def __repr__(self) -> str:
        own = ", ".join(f"{n}: {type(s.processor).__name__}" for n, s in self.specialists.items())
        return f"{type(self).__name__}({own}; {type(self.tokenizer).__name__})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of the modalities."""
        return tuple(self.specialists)

    @property
    def model_input_names(self) -> list[str]:
        """What a call may return: the tokenizer's names, then those of the specialists' inputs."""
        own = [name for specialist in self.specialists.values() for name in specialist.names]
        return [*self.tokenizer.model_input_names, *own]

    @property
    def chat_template(self) -> Any:
        """The base's chat template, which the tokenizer has; None where there is none."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        self.tokenizer.chat_template = template

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        audio: Any = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return a `BatchFeature` with `input_ids`, `attention_mask` and the specialists' inputs.

        Args:
            text: one or several, each with a placeholder wherever an input stands.
            images: one, several, or a list for each text; PIL images, arrays, tensors or files.
            audio: waveforms or files, in the same way.
            videos: arrays or lists of frames, or files.
            **kwargs: inputs of other modalities, by name; options of the tokenizer (`padding`, `truncation`,
                `max_length`, `return_tensors`, ...), which hold for the expanded texts; and options of the
                specialists' processors (`sampling_rate`, `do_resize`, ...), each for all that know it, or for
                one in `images_kwargs`, `audio_kwargs`, `videos_kwargs` or those of its name.

        Raises:
            RequestError: placeholders and inputs differ in number, inputs have no specialist, an option is
                not known, or truncation would remove placeholders.
        """
        transformers = required("transformers", "a processor needs")
        inputs = self._inputs({"images": images, "audio": audio, "videos": videos}, kwargs)
        text_options, options = self._options(kwargs)
        texts = _texts(text)
        self._check_numbers(texts, inputs)
        features: dict[str, Any] = {}
        for name, values in inputs.items():
            values = without_empty(values)
            others = [s.placeholder for s in self.specialists.values() if s.name != name]
            expand = self.specialists[name].expand
            texts, own = expand(texts, values, options[name], others)
            features |= own
        tokens = self._tokenized(texts, text_options)
        return transformers.BatchFeature({**tokens, **features})

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the prompt of a conversation, in the base's chat template; or several prompts of several.

        A message's content is a string, or a list of `{"type": "text", "text": ...}` and
        `{"type": "image", "image": ...}` with any modality in the place of `image`, in any order. Where an
        image is, the prompt has its specialist's mark-up. A template that writes lists alone, as those of
        processors may, gets the text with its mark-ups as a list of one item.

        Args:
            conversation: messages, or a list of conversations.
            chat_template: in the place of the base's, such as that of a specialist's own processor.
            tokenize: whether to process the prompt with the inputs that the messages hold.
            return_dict: whether to return then what a call returns, and not the ids alone.
            processor_kwargs: options of a call; they may stand among the others, too.
            **kwargs: `add_generation_prompt`, `continue_final_message`, `tools` and others of the template.

        Raises:
            RequestError: there is no chat template, a conversation is no list of messages, or the type of a
                content is not known; or the mask of the assistant's tokens is asked for.
        """
        if chat_template is None and self.tokenizer.chat_template is None:
            marks = ", ".join(f"{s.placeholder} for {s.name}" for s in self.specialists.values())
            own = [n for n, s in self.specialists.items() if getattr(s.processor, "chat_template", None)]
            such = f", such as .specialists[{own[0]!r}].processor.chat_template" if own else ""
            hint = f"give chat_template={such}, or write the prompt yourself with {marks}"
            raise RequestError(Problem("the base has no chat template", "", hint))
        if kwargs.get("return_assistant_tokens_mask"):
            hint = "find the answers in its ids yourself"
            what = "return_assistant_tokens_mask is not there for a prompt with inputs"
            raise RequestError(Problem(what, "apply_chat_template", hint))
        conversations = conversation if is_batch(conversation) else [conversation]
        pairs = [as_strings(messages, self.specialists) for messages in conversations]
        options = {key: kwargs.pop(key) for key in list(kwargs) if self._is_option(key)}
        written = [strings for strings, _ in pairs]
        render = partial(self.tokenizer.apply_chat_template, chat_template=chat_template, tokenize=False)
        if lists := takes_lists(render):
            written = [as_lists(messages) for messages in written]
        prompts = render(written, **kwargs)
        if not tokenize:
            return prompts if is_batch(conversation) else prompts[0]
        media = {s.argument: [inputs[name] for _, inputs in pairs] for name, s in self.specialists.items()}
        media = {argument: values for argument, values in media.items() if any(values)}
        options = {**media, **options, **(processor_kwargs or {})}
        # that of a language model writes the special tokens itself; that of a processor need not
        begun = self.tokenizer.bos_token is not None and prompts[0].startswith(self.tokenizer.bos_token)
        options = {"add_special_tokens": lists and not begun, **options}
        outputs = self(text=prompts, **options)
        return outputs if return_dict else outputs["input_ids"]

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Return the texts of generated ids, as transformers' pipelines ask a processor for them."""
        kwargs["skip_special_tokens"] = skip_special_tokens
        return list(self.batch_decode(generated_outputs, **kwargs))

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the texts of generated ids, as pipelines of any modality ask for them: answers are text.

        Raises `RequestError` where another `generation_mode` than text is asked for.
        """
        if generation_mode not in (None, "text"):
            what = f"generation_mode {generation_mode!r}: a composed model answers with text"
            raise RequestError(Problem(what, "processor", "leave it out"))
        return self.post_process_image_text_to_text(generated_outputs, skip_special_tokens, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `load_processor` reads, beside what the model's `save_pretrained` writes."""
        folder = Path(folder)
        _without_state(self.tokenizer).save_pretrained(folder)
        for name, specialist in self.specialists.items():
            specialist.processor.save_pretrained(folder / MODALITIES / name)
        if not (folder / MANIFEST).exists():
            (folder / MANIFEST).write_text(self._manifest, encoding="utf-8")

    def _inputs(self, given: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs that are there, by modality; those of other names are taken out of `kwargs`."""
        names = {s.argument: name for name, s in self.specialists.items()}
        given |= {argument: kwargs.pop(argument) for argument in names if argument in kwargs}
        inputs = {argument: local_inputs(values) for argument, values in given.items()}
        inputs = {
            argument: values for argument, values in inputs.items() if without_empty(values) is not None
        }
        for argument in inputs.keys() - names.keys():
            what = f"there is no specialist for {argument}; there are {few(names, 9)}"
            raise RequestError(Problem(what, "processor"))
        return {names[argument]: values for argument, values in inputs.items()}

    def _options(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return the options of the tokenizer, and those of each specialist's processor."""
        unknown = [key for key in kwargs if not self._is_option(key)]
        if unknown:
            what = f"{few(unknown)} is neither a modality of the model nor an option of its processors"
            raise RequestError(Problem(what, "processor", f"the modalities are {few(self.specialists, 9)}"))
        text = {key: value for key, value in kwargs.items() if _is_of_text(key)}
        tensors = {"return_tensors": text["return_tensors"]} if text.get("return_tensors") else {}
        own = {
            name: tensors
            | {key: value for key, value in kwargs.items() if not _is_of_text(key) and s.accepts(key)}
            | dict(kwargs.get(f"{s.argument}_kwargs", {}))
            for name, s in self.specialists.items()
        }
        return {**text, **kwargs.get("text_kwargs", {})}, own

    def _is_option(self, key: str) -> bool:
        """Return whether a call takes this argument, for its texts or for a specialist."""
        specialists = self.specialists.values()
        if any(key in (s.argument, f"{s.argument}_kwargs") for s in specialists):
            return True
        return key == "text_kwargs" or _is_of_text(key) or any(s.accepts(key) for s in specialists)

    def _check_numbers(self, texts: Sequence[str], inputs: Mapping[str, Any]) -> None:
        """Raise `RequestError` where texts have more or fewer placeholders than there are inputs."""
        problems = []
        for name, specialist in self.specialists.items():
            marked, values = [text.count(specialist.placeholder) for text in texts], inputs.get(name)
            given = count_inputs(specialist.kind, without_empty(values))
            listed = counts_by_text(specialist.kind, values)
            if sum(marked) != given:
                noun = name if given == 1 else specialist.argument
                what = f"{sum(marked)} {specialist.placeholder} in the text, {given} {noun} given"
                problems.append(Problem(what, "processor", "write one where each of them stands"))
            elif listed not in (None, marked):
                what = f"each text has {marked} {specialist.placeholder}, and its list {listed} {name}"
                problems.append(Problem(what, "processor", "give a list for each text, or one for all"))
        if problems:
            raise RequestError(problems)

    def _tokenized(self, texts: Sequence[str], options: Mapping[str, Any]) -> Any:
        """Return what the tokenizer makes of the expanded texts, each placeholder one token."""
        tokens = self.tokenizer(list(texts), **options)
        ids = tokens["input_ids"]
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        for specialist in self.specialists.values():
            expected = sum(text.count(specialist.placeholder) for text in texts)
            met = sum(row.count(specialist.placeholder_id) for row in rows)
            if met != expected:
                what = f"{expected} tokens {specialist.placeholder} in the text, {met} in its ids"
                hint = "truncation removes inputs: leave it out, or raise max_length"
                raise RequestError(Problem(what, "processor", hint))
        return tokens


def _texts(text: Any) -> list[str]:
    """Return one or several texts as a list."""
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(part, str) for part in texts):
        hint = "write a prompt with placeholders, or use apply_chat_template"
        raise RequestError(Problem("text is a string or a list of strings", "processor", hint))
    return texts


def _is_of_text(option: str) -> bool:
    """Return whether an option is the tokenizer's, and not one of a processor about its text."""
    from transformers.processing_utils import TextKwargs

    return option in TextKwargs.__annotations__ and option.removeprefix("return_") not in TEXT_OUTPUTS


def _without_state(tokenizer: Any) -> Any:
    """Return the tokenizer, whose file would keep the truncation and padding of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer
