"""A specialist without its language model: what its encoder and projector make of images, sounds, videos.

It is the specialist's own class of transformers, made with a language model of no layers. In the place of
that comes a `_LanguageModel`, whose table gives zeros, and which ends the pass with the embeddings that it is
given. So everything before the language model is transformers' own code: how features are made, how many each
input has, and in which places of the prompt they stand.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, few
from submerge.gating import StopForward, each, tensors
from submerge.serving._input_names import specialist_class

__all__ = ["ENCODERS", "Encoder", "Encoders", "encoder_of", "read_encoder"]

PASSED = {
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "use_cache",
    "cache_position",
    "logits_to_keep",
}
"""What a multimodal class may hand to its language model, beside flags."""
FLAGS = ("return_", "output_")
UNFIT = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What transformers' classes raise where inputs do not go together, in torch's functions, too."""
WRAPPED = {"base_layer", "original_module"}
"""What PEFT calls the module that it wraps."""
ENCODERS = "encoders"
"""The name of a model's attribute for them."""


class _LanguageModel(nn.Module):
    """Stands for a language model of width d: its embeddings are zeros, and a pass ends in its forward."""

    like: torch.Tensor

    def __init__(self, config: Any, like: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("like", like.new_empty(0), persistent=False)
        self.received: dict[str, Any] = {}
        self.asked: set[tuple[int, ...]] = set()

    def get_input_embeddings(self) -> Any:
        """Return the table, which needs no rows."""
        return self.embed_tokens

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Return zeros [B, L, d] for ids [B, L]."""
        self.asked.add(tuple(ids.shape))
        return self.like.new_zeros(*ids.shape, self.config.hidden_size)

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Take the inputs, and end the pass."""
        self.received = {**{str(number): x for number, x in enumerate(args)}, **kwargs}
        raise StopForward

    def taken(self) -> tuple[dict[str, Any], set[tuple[int, ...]]]:
        """Return what the last pass handed over, and the shapes of ids it embedded, and let go of both."""
        received, self.received = self.received, {}
        asked, self.asked = self.asked, set()
        return received, asked


class Encoder(nn.Module):
    """The encoder and projector of one modality, in the class that they were trained in.

    Args:
        name: of the modality.
        model: of transformers, whose language model is left out in place; that of another modality's encoder,
            where one specialist takes both.
        kind: of its inputs, as its class calls them: image, audio, video.
        placeholder: the id of the tokens that stand for an input's features.
    """

    def __init__(self, name: str, model: Any, kind: str, placeholder: int) -> None:
        super().__init__()
        self.name, self.kind, self.placeholder = name, kind, placeholder
        self.language_model = _left_out(model)
        self.model = model
        self.filler = _unused_id(model.config)

    def embeddings(self, ids: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the features of inputs at the placeholders in ids [B, L], and zeros elsewhere: [B, L, d].

        `inputs` have the names that the class has for them.

        Raises:
            RequestError: there are more features than placeholders, or fewer; or the class hands more to its
                language model than embeddings.
        """
        own = torch.where(ids == self.placeholder, ids, self.filler)
        try:
            embeddings = self._run(own, inputs)
        except torch.OutOfMemoryError:
            raise
        except UNFIT as error:
            raise self._refusal(own, inputs, str(error)) from error
        if embeddings.shape[:2] != own.shape:
            raise self._refusal(own, inputs, "each feature of an input has a placeholder of its own")
        return embeddings

    def check(self) -> None:
        """Raise `RequestError` where the class hands more to its language model than embeddings of a text."""
        with suppress(*UNFIT):  # a class may want inputs
            self._run(torch.full((1, 2), self.filler, device=self.language_model.like.device), {})

    def _run(self, ids: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return what the language model is given for ids and inputs."""
        self.language_model.taken()  # what is left of a pass that failed
        with suppress(StopForward):
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self._moved(inputs))
        received, asked = self.language_model.taken()
        self._check_passed(received)
        if asked - {tuple(ids.shape)}:
            what = f"{type(self.model).__name__} makes features of its language model's own embeddings"
            hint = "such a model cannot be a specialist"
            raise RequestError(Problem(what, f"modality {self.name}", hint))
        embeddings: torch.Tensor = received["inputs_embeds"]
        return embeddings

    def _moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs on the device of the encoder, and real numbers in its dtype."""
        like = self.language_model.like
        return {name: each(value, lambda x: _as(x, like)) for name, value in inputs.items()}

    def _feature_count(self, inputs: Mapping[str, Any]) -> int | None:
        """Return how many features inputs have, where the class can say it apart from a prompt."""
        try:
            features = getattr(self.model, f"get_{self.kind}_features")(**self._moved(inputs)).pooler_output
        except UNFIT:
            return None
        count: int = sum(x.numel() for x in tensors(features)) // self.language_model.config.hidden_size
        return count

    def _check_passed(self, received: Mapping[str, Any]) -> None:
        """Raise `RequestError` where the class handed over what another language model has no place for."""
        wrong = [
            name
            for name, value in received.items()
            if value is not None and name not in PASSED and not name.startswith(FLAGS)
        ]
        wrong += [name for name in ("attention_mask", "position_ids") if not _is_plain(received.get(name))]
        if "inputs_embeds" not in received:
            wrong.append("no inputs_embeds")
        if wrong:
            kind = type(self.model).__name__
            what = f"{kind} hands more than embeddings to its language model: {few(wrong)}"
            hint = "such a model cannot be a specialist"
            raise RequestError(Problem(what, f"modality {self.name}", hint))

    def _refusal(self, ids: torch.Tensor, inputs: Mapping[str, Any], why: str) -> RequestError:
        tokens, features = int((ids == self.placeholder).sum()), self._feature_count(inputs)
        what = f"the prompt has {tokens} placeholders, and the inputs do not fit: {why}"
        if features not in (None, tokens):
            what = f"the prompt has {tokens} placeholders, and the inputs have {features} features"
        hint = (
            "give what the processor of the folder returns (submerge.load_processor)"
            + (", of a text that marks where each input stands" if not tokens else "")
            + "; if it is, the processor's settings are not the model's"
        )
        return RequestError(Problem(what, f"modality {self.name}", hint))


class Encoders(nn.ModuleList):
    """All encoders of a model: they move with it, and its state dict is the language model's alone.

    What is added to them is in it, such as factors of an adapter, which PEFT looks for there.
    """

    def __init__(self, encoders: Iterable[Encoder]) -> None:
        super().__init__(encoders)
        self.own = frozenset(super().state_dict())
        self.register_load_state_dict_post_hook(_miss_nothing)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
        every = super().state_dict(*args, prefix=prefix, **kwargs)
        added = {
            name: x for name, x in every.items() if _unwrapped(name.removeprefix(prefix)) not in self.own
        }
        if destination is None:
            return added
        destination.update(added)
        return destination


def _unwrapped(name: str) -> str:
    """Return what a tensor was called before PEFT wrapped its module."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _miss_nothing(encoders: nn.Module, keys: Any) -> None:
    """Let the language model's own state dict be loaded again: nothing is missing in it."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(f"{ENCODERS}.")]


def read_encoder(
    task: Mapping[str, Any], folder: Path, own: dict[str, torch.Tensor], loading: Mapping[str, Any]
) -> Encoder:
    """Return a specialist's encoder, from the folder of its configuration and the tensors of its files.

    `loading` are arguments of `from_pretrained`. Without a `dtype` there the encoder has the one in which
    transformers loads the specialist, whatever that of the language model is.

    Raises:
        RequestError: transformers lacks its class, or cannot make it, or tensors are missing; or the class
            hands more to its language model than embeddings.
    """
    kind, where = specialist_class(task), f"modality {task['name']}"
    try:
        config = _without_layers(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        model, missing = _built(kind, config, own, loading)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        what = f"{kind.__name__} cannot be made of {folder / 'config.json'}: {error}"
        raise RequestError(Problem(what, where, "merge again, or install another transformers")) from error
    if missing:
        what = f"the bank lacks parameters of {kind.__name__}: {few(missing)}"
        raise RequestError(Problem(what, where, "merge again"))
    encoder = encoder_of(task, model)
    encoder.check()
    return encoder


def encoder_of(task: Mapping[str, Any], model: Any) -> Encoder:
    """Return the encoder of a modality, whose specialist's model may be that of another modality, too."""
    return Encoder(task["name"], model, str(task["kind"]), int(task["placeholder_id"]))


def _left_out(model: Any) -> _LanguageModel:
    """Return what stands for a model's language model, which is left out in place if it is not yet."""
    before = next((module for module in model.modules() if isinstance(module, _LanguageModel)), None)
    if before is not None:
        return before
    decoder = model.get_decoder()
    stand_in = _LanguageModel(decoder.config, next(decoder.parameters()))
    model.set_decoder(stand_in)
    if hasattr(model, "lm_head"):
        model.lm_head = nn.Identity()
    return stand_in


def _without_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a specialist whose language model has no layers, and a table of one row."""
    text = dict(config["text_config"])
    layers = text.get("num_hidden_layers")
    for name, value in text.items():
        if isinstance(value, list) and (len(value) == layers or name == "layer_types"):
            text[name] = []
    tokens = {f"{name}_token_id": None for name in ("pad", "bos", "eos")}
    return {**config, "text_config": {**text, **tokens, "num_hidden_layers": 0, "vocab_size": 1}}


def _built(
    kind: Any, config: Mapping[str, Any], own: dict[str, torch.Tensor], loading: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """Return the model, and the names of the parameters outside of its language model that are missing."""
    transformers = required("transformers", "a composed model needs")
    with warnings.catch_warnings(), quietly(transformers.logging):
        warnings.simplefilter("ignore")
        model, loading = kind.from_pretrained(
            None,
            config=kind.config_class.from_dict(dict(config)),
            state_dict=own,
            output_loading_info=True,
            **{"dtype": "auto", **loading},
        )
    decoder = model.get_decoder()
    if decoder is model:
        raise ValueError("it has no language model of its own")
    inner = next(path for path, module in model.named_modules() if module is decoder)
    missing = [
        name
        for name in loading["missing_keys"]
        if not name.startswith(f"{inner}.") and "lm_head" not in name.split(".")
    ]
    return model.requires_grad_(False).eval(), sorted(missing)


def _unused_id(config: Any) -> int:
    """Return the smallest id that a configuration names as no special token."""
    ids = [value for name, value in config.to_dict().items() if name.endswith(("token_id", "token_index"))]
    special = {value for value in ids if isinstance(value, int)}
    return next(number for number in range(len(special) + 1) if number not in special)


def _as(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.to(like) if value.is_floating_point() else value.to(like.device)


def _is_plain(value: Any) -> bool:
    """Return whether a mask is of ones, or positions [B, L] are 0, 1, 2, …: what is meant without them."""
    if value is None:
        return True
    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        return False
    length = value.shape[1]
    return bool((value == 1).all()) or bool((value == torch.arange(length, device=value.device)).all())
