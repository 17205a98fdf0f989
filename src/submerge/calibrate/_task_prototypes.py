"""What a projector is given on a task's inputs, as a few vectors that tell images of the task from others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from submerge.algebra import GroupStatistics, k_means
from submerge.calibrate._collect import ModelInputs, run_observed
from submerge.calibrate._image_positions import image_positions
from submerge.calibrate._reducers import Mean
from submerge.errors import Problem, RequestError
from submerge.gating import Observer, StopForward, positions_apart

__all__ = ["Pooling", "TaskPrototypes", "pooled", "question_vectors", "task_prototypes"]

Pooling: TypeAlias = Literal["mean", "position"]
_PLACEHOLDERS = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]


@dataclass(frozen=True)
class TaskPrototypes:
    """A task's prototypes.

    Attributes:
        images: [m, d] float32, of d numbers each: the pooled inputs of the projector.
        text: [1, h] float32, the mean of the questions' embeddings; None where it was not asked for.
        count: how many inputs of the projector they are made of: images, or tiles of images.
        vectors: [count, d] float32, what each of these was pooled to; None where it was not asked for.
        image_statistics: what a discriminant needs to know of the images; None of positions side by side,
            whose scatter is large.
        text_statistics: the same of the questions, where these were asked for.
    """

    images: torch.Tensor
    text: torch.Tensor | None
    count: int
    vectors: torch.Tensor | None = None
    image_statistics: GroupStatistics | None = None
    text_statistics: GroupStatistics | None = None


@torch.no_grad()
def task_prototypes(
    model: Any,
    inputs: Sequence[ModelInputs],
    module: str,
    *,
    pooling: Pooling = "mean",
    count: int = 1,
    text: bool = False,
    vectors: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TaskPrototypes:
    """Return a task's prototypes: the mean of what its projector is given, and of its questions.

        v(x) = the mean over positions of E(x),   μ = Σ v(x) / N     (CPM of arXiv 2604.14016, §4.2)

    Each pass ends in the projector, so that the encoder E alone runs. It is the same for all tasks, and so it
    does not matter with which projector and which adapter the model runs. The sums are formed in float64.

    Args:
        model: of transformers, with an encoder, a projector and a language model.
        inputs: batches of the task's inputs, as the processor gives them; texts alone have no image to show.
        module: the path of the projector, as `submerge.names.projector_of` finds it.
        pooling: `mean` over the positions; or `position`, all of them side by side, d = positions · width.
        count: the most prototypes; more than one are the means of clusters, for tasks with unlike images.
        text: whether the questions are looked at, too.
        vectors: whether each v(x) is kept.
        progress: called after each batch with the number of batches so far.

    Raises:
        RequestError: no input has an image; the projector is given something else than [images, positions,
            width], or the positions of all images one after another, whose numbers are told by their sizes or
            are equal; or with `position` images do not have the same number of positions.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import task_prototypes
        >>> class Tiny(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.projector = torch.nn.Linear(2, 3)
        ...     def forward(self, pixel_values):
        ...         return self.projector(pixel_values)
        >>> images = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> task_prototypes(Tiny(), [{"pixel_values": images}], "projector").images
        tensor([[2., 3.]])
    """
    summed = pooling == "mean"
    observer = _ProjectorInputs(module, pooling, keep=vectors or count > 1 or summed)
    questions: list[torch.Tensor] = []
    for number, batch in enumerate(inputs, 1):
        observer.inputs, observer.positions = _count(batch), image_positions(model, batch)
        run_observed(model, batch, _watched(model, module), observer)
        if text and "input_ids" in batch:
            questions.append(question_vectors(model, batch).cpu())
        if progress is not None:
            progress(number)
    if observer.mean is None:
        hint = "give images with their questions"
        raise RequestError(Problem("no input has an image for the projector", "data", hint))
    rows = torch.cat(observer.vectors) if observer.vectors else None
    mean = observer.mean.mean.float().unsqueeze(0)
    means = mean if rows is None or count == 1 else k_means(rows, count)[0]
    asked = torch.cat(questions) if questions else None
    topic = None if asked is None else asked.double().mean(0, keepdim=True).float()
    return TaskPrototypes(
        means,
        topic,
        observer.mean.count,
        rows if vectors else None,
        _statistics(rows, means) if summed else None,
        _statistics(asked, topic),
    )


def _statistics(vectors: torch.Tensor | None, means: torch.Tensor | None) -> GroupStatistics | None:
    """Return the statistics of vectors; None of none, and of NaN and Inf, which callers refuse."""
    if vectors is None or means is None or not bool(vectors.isfinite().all()):
        return None
    return GroupStatistics.of(vectors, means)


def pooled(x: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return v [B, d] float32 of a projector's inputs [B, positions, width]."""
    return x.float().mean(1) if pooling == "mean" else x.float().flatten(1)


def question_vectors(model: Any, batch: ModelInputs) -> torch.Tensor:
    """Return the mean of each text's embeddings [B, h] float32, without padding and placeholders."""
    table = model.get_input_embeddings()
    device = next(table.parameters()).device
    ids = batch["input_ids"].to(device)
    placeholders = [
        value for name in _PLACEHOLDERS if (value := getattr(model.config, name, None)) is not None
    ]
    own = ~torch.isin(ids, ids.new_tensor(placeholders))
    if "attention_mask" in batch:
        own &= batch["attention_mask"].to(device).bool()
    embeddings: torch.Tensor = table(ids).float() * own.unsqueeze(-1)
    return embeddings.sum(1) / own.sum(1, keepdim=True).clamp(min=1)


def _watched(model: Any, module: str) -> list[str]:
    """Return the modules at which a pass ends: the projector, and for texts alone the language model."""
    language = model.get_decoder() if hasattr(model, "get_decoder") else None
    paths = [path for path, inner in model.named_modules() if inner is language and path]
    return [module, *paths]


def _count(batch: ModelInputs) -> int | None:
    """Return how many images or sounds a batch has, the rows of its real numbers; None without any."""
    given = (value for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim > 2)
    return next((len(value) for value in given if value.is_floating_point()), None)


class _ProjectorInputs(Observer):
    """Takes in what a projector is given, pooled, and ends the pass there, or where there was no image."""

    def __init__(self, module: str, pooling: Pooling, *, keep: bool) -> None:
        self._module, self._pooling, self._keep = module, pooling, keep
        self.inputs: int | None = None  # of the batch that runs
        self.positions: tuple[int, ...] = ()  # of its images, where they lie side by side
        self.mean: Mean | None = None
        self.vectors: list[torch.Tensor] = []

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        if name == self._module:
            for part in self._images(x):
                self._take(part)
        raise StopForward

    def _images(self, x: Any) -> Sequence[Any]:
        """Return what the projector is given, by image where images of many sizes lie side by side."""
        if not self.positions or not isinstance(x, torch.Tensor):
            return (x,)
        apart = positions_apart(x, self.positions)
        if not apart and x.shape[:-2] != (len(self.positions),):
            what = f"is given {list(x.shape)}, and images of {list(self.positions)} patches"
            raise RequestError(Problem(what, self._module, "such a projector has no prototypes"))
        return tuple(part.unsqueeze(0) for part in apart) or (x,)

    def _take(self, x: Any) -> None:
        if isinstance(x, torch.Tensor) and x.ndim == 2 and self.inputs and not len(x) % self.inputs:
            x = x.reshape(self.inputs, -1, x.shape[1])  # Voxtral's is given all sounds in one row
        if not isinstance(x, torch.Tensor) or x.ndim != 3:
            shape = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            what = f"is given {shape}, and not [images, positions, width]"
            raise RequestError(Problem(what, self._module, "such a projector has no prototypes"))
        rows = pooled(x, self._pooling)
        self.mean = self.mean or Mean(rows.shape[1])
        if rows.shape[1] != len(self.mean.sum):
            what = f"is given {x.shape[1]} positions of an image, and of another one fewer or more"
            raise RequestError(Problem(what, self._module, "use the mean over positions: --pooling mean"))
        self.mean.update(rows)
        if self._keep:
            self.vectors.append(rows.cpu())
