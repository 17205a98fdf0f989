"""What a call's inputs say of images, sounds and videos: how many, with which rows, and of which samples.

Multimodal classes of transformers project all images of a batch in one call, then all videos, then all
sounds, whichever are given. A class that cuts a large image into tiles projects each tile as a row.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from submerge.calibrate import image_positions, question_vectors
from submerge.errors import Problem, RequestError
from submerge.serving._input_names import input_kind

__all__ = ["MediaInputs", "media_inputs", "text_vectors"]

KINDS = ("image", "video", "audio")
"""In the order in which they are projected."""
DIMENSIONS = {"image": 4, "video": 5, "audio": 3}
"""Of a tensor of inputs of a kind, of which each row is one: channels and sizes, frames, frequencies."""


@dataclass(frozen=True)
class MediaInputs:
    """The inputs of one kind.

    Attributes:
        kind: image, video or audio.
        count: how many there are; None where that cannot be told from their form.
        rows: that each has in the projector, where not all have equally many.
        positions: that each has, where they may lie side by side in one row.
        lengths: how many tokens each has, as multiples of any number; empty where that is not known.
        placeholders: the ids of tokens in whose place their features come.
    """

    kind: str
    count: int | None
    rows: tuple[int, ...]
    positions: tuple[int, ...]
    lengths: tuple[int, ...]
    placeholders: tuple[int, ...]

    def of_samples(self, values: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """Return for each input the values of its sample, [N, K], or [1, K] where all have the same.

        `values` [B, K] are those of samples with the ids [B, L]. Inputs stand in a batch in the order of
        their placeholders. Raises `RequestError` where these do not show which inputs are a sample's.
        """
        if len(values) == 1 or bool((values == values[0]).all()):
            return values[:1]
        samples: Sequence[int] | None = None
        if ids is not None:
            samples = self._samples(torch.isin(ids, ids.new_tensor(self.placeholders)))
        elif self.count == len(values):
            samples = range(len(values))
        if samples is None:
            what = f"it cannot be told which {self.kind} inputs are of which sample"
            hint = "give the samples one by one"
            raise RequestError(Problem(what, "projectors", hint))
        return values[list(samples)]

    def _samples(self, places: torch.Tensor) -> Sequence[int] | None:
        """Return the sample of each input, where placeholders stand at `places` [B, L]; None: not known.

        Each is a run of placeholders, or their lengths tell them apart. Of images of many sizes each row of
        patches may be a run.
        """
        of_sample = places.sum(1).tolist()
        own = [sample for sample, number in enumerate(of_sample) if number]
        if len(own) == 1:
            return [own[0]] * (self.count or 1)
        begins = places & ~torch.nn.functional.pad(places, (1, 0))[:, :-1]
        runs: list[int] = begins.nonzero()[:, 0].tolist()
        if len(runs) == self.count and not self.positions:
            return runs
        return self._by_length(of_sample)

    def _by_length(self, of_sample: Sequence[int]) -> Sequence[int] | None:
        """Return the sample of each input, where samples have so many placeholders; None: not known."""
        total, known = sum(of_sample), sum(self.lengths)
        if not known or any(total * length % known for length in self.lengths):
            return None
        lengths, samples = iter(total * length // known for length in self.lengths), []
        for sample, left in enumerate(of_sample):
            while left > 0:
                left -= next(lengths)
                samples.append(sample)
            if left:
                return None
        return samples


def media_inputs(model: Any, inputs: Mapping[str, Any]) -> list[MediaInputs]:
    """Return what is given of each kind, in the order in which it is projected."""
    given = {input_kind(name): value for name, value in inputs.items() if _is_media(value)}
    listed = []
    for kind in (kind for kind in KINDS if kind in given):
        value = given[kind]
        of_images = {name: inputs[name] for name in inputs if kind == "image"}
        tiles, positions = _tiles(model, of_images), image_positions(model, of_images)
        known = isinstance(value, torch.Tensor) and value.ndim == DIMENSIONS[kind]
        count = len(tiles or positions) or (value.shape[0] if known else None)
        lengths = positions or ((1,) * (count or 0) if _are_alike(inputs, kind) else ())
        placeholders = _placeholders(model.config, kind)
        listed.append(MediaInputs(kind, count, tiles, positions, lengths, placeholders))
    return listed


def _is_media(value: Any) -> bool:
    """Return whether an argument is real numbers: sizes and masks, which have such names, too, are whole."""
    if isinstance(value, (list, tuple)):
        return bool(value) and _is_media(value[0])
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _are_alike(inputs: Mapping[str, Any], kind: str) -> bool:
    """Return whether all inputs of a kind have one size, and one length, by what a call says of them."""
    told = [value for name, value in inputs.items() if input_kind(name) == kind and not _is_media(value)]
    return all(bool((x == x[:1]).all()) for x in map(torch.as_tensor, told) if x.ndim > 1)


def _tiles(model: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tiles of each image as the model's class counts them; none where it cuts no images."""
    count = getattr(sys.modules[type(model).__module__], "image_size_to_num_patches", None)
    sizes = inputs.get("image_sizes")
    if count is None or sizes is None:
        return ()
    config, alone = model.config, [True] * len(sizes)
    if (numbers := inputs.get("batch_num_images")) is not None:  # of a sample with several none is cut
        alone = [int(number) == 1 for number in numbers for _ in range(int(number))]
    patch = config.vision_config.image_size
    return tuple(
        count(image_size=size, grid_pinpoints=config.image_grid_pinpoints, patch_size=patch) if cut else 1
        for size, cut in zip(sizes, alone, strict=True)
    )


def _placeholders(config: Any, kind: str) -> tuple[int, ...]:
    """Return the ids of tokens in whose place the features of a kind of inputs come."""
    ids = {getattr(config, f"{kind}_{suffix}", None) for suffix in ("token_id", "token_index")}
    return tuple(sorted(number for number in ids if number is not None))


def text_vectors(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the mean input embedding [B, h], float32, of each sample's tokens that are no placeholders.

    Raises `RequestError` where there are no ids.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        what = "the text counts for the choice of projectors, and there are no input_ids"
        raise RequestError(Problem(what, type(model).__name__, 'give them, or load with key="image"'))
    batch = {"input_ids": ids}
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:  # of what a cache holds it has more
        batch["attention_mask"] = mask[:, -ids.shape[1] :]
    return question_vectors(model, batch)
