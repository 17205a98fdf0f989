"""Passes of a model over batches, in which reducers take in the inputs of chosen modules, row by row."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from submerge.errors import Problem, RequestError, WorkError, first_line
from submerge.gating import Observer, StopForward, observe

__all__ = ["ModelInputs", "Reducer", "collect", "run_observed"]

ModelInputs: TypeAlias = Mapping[str, torch.Tensor]
"""The keyword arguments of a model for one batch."""

_LATE = getattr(torch, "AcceleratorError", ())
"""What a GPU tells of a model's work when it has gone on; torch before 2.8 has no name for it."""
_TOWER = re.compile(r"(?:^|\.)(?:\w+_tower|visual|vision_model)\.")
_DECODER = re.compile(r"(?:^|\.)decoder\.")
_OF_ENCODED = re.compile(
    r"(?i)\.(?:EncDecAttention|encoder_attn|cross_?attn|cross_?attention)\.(?:\w+\.)?[kv]"
)
"""Maps of a decoder whose inputs are the encoder's: keys and values of its attention to these."""
_SHIFTING = frozenset({"bart", "bigbird_pegasus", "fsmt", "led", "mbart", "mvp", "plbart"})
"""Kinds of models that make their decoder's inputs of the encoder's, where they are given none."""
_TOWERS = {
    "pixel_values": "get_image_features",
    "input_features": "get_audio_features",
    "input_ids": "get_text_features",
}
"""By which method each tower of a CLIP, SigLIP or CLAP runs alone, and on which inputs."""


class Reducer(ABC):
    """What is gathered of the inputs of one module: a sum of something over all rows."""

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows [..., n] of a module's input, at each of its positions: by default the input."""
        return x

    @abstractmethod
    def update(self, rows: torch.Tensor) -> None:
        """Take in rows [N, n], the inputs at N positions, in the model's dtype and on its device."""


def collect(
    model: nn.Module,
    batches: Iterable[ModelInputs],
    reducers: Mapping[str, Reducer],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run a model over batches, and let the reducer of each module take in the rows of its inputs.

    A pass ends as soon as each of the modules has had its input: what comes after the last of them (blocks,
    heads) is not computed. Of a module that runs several times in a pass, as layers that share parameters
    do, the first input counts. Positions that `attention_mask` [B, L] excludes are left out of inputs
    [B, L, n], [B, L, …, n] and [B · L, n], and of [1, L, n], which all B share and each counts for itself. In
    an image or audio tower another mask counts, as `feature_attention_mask` [B, F] of F frames, of which a
    layer with inputs [B, F / 2, n] sees every second. In the decoder of a model that is given
    `decoder_input_ids` it is `decoder_attention_mask`, if there is one. A decoder that is given none gets the
    token with which `generate` starts, unless its class makes its inputs of the encoder's, as BART does. Of a
    model with two towers, as CLIP, inputs of one kind run through theirs alone. The model runs as it is, in
    the mode that it is in, outside of autocast, and gradients are recorded unless the caller disables them:
    then the reducers' sums are functions of what the model depends on. What a model draws at random, as
    ViTMAE the patches that it hides, is drawn alike in every pass, and the caller's generator is left as it
    is.

    Args:
        model: a model that takes the batches as keyword arguments.
        batches: tensors by name; they are moved to the model's device, and floats to its dtype.
        reducers: by the names of the modules whose first input they take in.
        progress: called after each batch with the number of batches so far.

    Raises:
        RequestError: the model refuses the inputs, as one of images and texts does that gets images alone.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> from submerge.calibrate import NullSpaceRatio, collect
        >>> model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
        >>> ratio = NullSpaceRatio([torch.eye(4, 64)])
        >>> batch = {"input_ids": torch.tensor([[3, 14, 15, 9]])}
        >>> with torch.no_grad():
        ...     collect(model, [batch], {"model.layers.2.self_attn.q_proj": ratio})
        >>> ratio.count
        4
    """
    for number, batch in enumerate(batches, 1):
        run_observed(model, batch, reducers, _Collector(reducers, batch))
        if progress is not None:
            progress(number)


def run_observed(model: nn.Module, batch: ModelInputs, names: Iterable[str], observer: Observer) -> None:
    """Run a model over one batch, and let an observer see the inputs of the modules of these names."""
    modules = {name: model.get_submodule(name) for name in names}
    like = next(model.parameters())
    inputs = {name: _moved(value, like) for name, value in batch.items()}
    _add_start(model, inputs)
    watched = _Watched(observer)
    exact = torch.autocast(like.device.type, enabled=False)  # the caller's
    with exact, _drawing_alike(like.device), _without_cache(model), observe(modules, watched):
        _run(model, inputs, watched)


def _add_start(model: nn.Module, inputs: MutableMapping[str, Any]) -> None:
    """Give a decoder without inputs the token with which `generate` starts, for each input."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if not _lacks_decoder_inputs(model, inputs) or kind in _SHIFTING or not inputs:
        return
    first = next(iter(inputs.values()))
    start = getattr(config, "decoder_start_token_id", None)
    if start is not None and isinstance(first, torch.Tensor) and first.ndim:
        inputs["decoder_input_ids"] = torch.full((len(first), 1), start, device=first.device)


@contextmanager
def _drawing_alike(device: torch.device) -> Iterator[None]:
    """Let what is drawn at random inside depend on nothing before it, nor anything after on it."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type=None if on_cpu else device.type):
        torch.default_generator.manual_seed(0)
        if not on_cpu:
            torch.get_device_module(device).manual_seed(0)
        yield


class _Watched(Observer):
    """An observer, and what it raised: that is no word of the model's on its inputs."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.error: Exception | None = None
        self.seen = False

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        self.seen = True
        try:
            self._observer.on_input(name, module, x)
        except Exception as error:
            if not isinstance(error, _LATE):
                self.error = error
            raise


def _run(model: nn.Module, inputs: Mapping[str, Any], watched: _Watched) -> None:
    """Run a model; what it refuses is the request's fault, but for memory that does not suffice."""
    reading = _reading(model, inputs)
    try:
        reading(**inputs)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            what = f"the memory does not suffice for a batch ({first_line(error)})"
            raise WorkError(Problem(what, type(model).__name__, "take a smaller batch_size")) from error
        if error is watched.error:
            raise
        what = f"it refuses inputs of {', '.join(inputs)} ({first_line(error)})"
        hint = "give inputs of the kind that it takes, or hooks that these inputs reach"
        if "pixel_values" in inputs and "input_ids" not in inputs:
            hint = "give images with their questions, where the model reads text: columns image and text"
        if isinstance(error, IndexError):  # of an embedding: of tokens, or of positions
            hint = "look whether the tokenizer is the model's own, with no more tokens, and at max_length"
        if _lacks_decoder_inputs(model, inputs):
            hint = "it has an encoder and a decoder: give batches of tensors with decoder_input_ids, too"
        if beyond := _beyond_positions(model, inputs):
            hint = f"{beyond}: set max_length, or cut them"
        raise RequestError(Problem(what, type(model).__name__, hint)) from error
    if reading is not model and not watched.seen:
        what = f"inputs of {', '.join(inputs)} run through a tower without any of the modules to look at"
        hint = "give inputs of the other tower, or hooks that these inputs reach"
        raise RequestError(Problem(what, type(model).__name__, hint))


def _reading(model: nn.Module, inputs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what of a model reads such inputs: one of two towers where there are none for the other."""
    if hasattr(model, "language_model") or not hasattr(model, "get_text_features"):
        return model
    own = [name for tensor, name in _TOWERS.items() if tensor in inputs and hasattr(model, name)]
    return getattr(model, own[0]) if len(own) == 1 else model


def _lacks_decoder_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    given = ("decoder_input", "encoder_outputs")
    return bool(two) and not any(name.startswith(given) for name in inputs)


def _beyond_positions(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Return that texts are longer than the model has positions, if they are."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    ids = inputs.get("input_ids")
    if not isinstance(most, int) or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return ""
    length = ids.shape[1]
    if not 0 < most < length:  # XLNet's is -1
        return ""
    return f"the texts have up to {length} tokens, and the model {most} positions"


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Let a model of transformers hold no keys and values of a pass: there is one pass alone."""
    configs: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    caching = {id(config): config for config in configs if getattr(config, "use_cache", False)}.values()
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


class _Collector(Observer):
    """Hands the inputs of one pass to the reducers, and ends the pass after the last module."""

    def __init__(self, reducers: Mapping[str, Reducer], inputs: Mapping[str, Any]) -> None:
        self._reducers, self._left = reducers, set(reducers)
        masks = {name: value for name, value in inputs.items() if name.endswith("attention_mask")}
        self._mask: torch.Tensor | None = masks.pop("attention_mask", None)
        self._decoder_mask: torch.Tensor | None = masks.pop("decoder_attention_mask", None)
        self._has_decoder = any(name.startswith("decoder_input") for name in inputs)
        self._tower_mask: torch.Tensor | None = next(iter(masks.values()), None)

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        if name not in self._left:
            return
        self._left.discard(name)
        with saved_tensors_hooks(_same, _same):
            x = self._reducers[name].positions(x)
            self._reducers[name].update(_rows(x, self._mask_of(name, x)))
        if not self._left:
            raise StopForward

    def _mask_of(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        """Return the mask of a module's positions: in a tower that of the frames, thinned to its length."""
        if self._has_decoder and _DECODER.search(name) and not _OF_ENCODED.search(name):
            return self._decoder_mask
        if not _TOWER.search(name):
            return self._mask
        frames = self._tower_mask
        if frames is None or frames.ndim != 2 or x.ndim != 3 or frames.shape[1] < x.shape[1]:
            return None
        return frames[:, :: frames.shape[1] // x.shape[1]]


def _same(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor that autograd saves.

    In a layer that is checkpointed nothing is saved, and what is computed again has no observers: so what
    reducers save is kept apart from what the layer does.
    """
    return x


def _rows(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the rows [N, n] of an input [..., n] that are no padding."""
    n = x.shape[-1]
    if mask is None:
        return x.reshape(-1, n)
    mask = mask.to(x.device).bool()
    if x.ndim == 3 and x.shape[:2] == (1, *mask.shape[1:]):  # as positions, which are those of all inputs
        x = x.expand(len(mask), -1, -1)
    if x.ndim > 2 and x.shape[:2] == mask.shape:
        return x[mask].reshape(-1, n)
    rows = x.reshape(-1, n)
    return rows[mask.reshape(-1)] if x.shape[:-1] == (mask.numel(),) else rows


def _moved(value: Any, like: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_inference():  # of which autograd saves nothing
        value = value.clone()
    return value.to(like.device, like.dtype if value.is_floating_point() else None)
