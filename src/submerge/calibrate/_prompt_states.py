"""What a model makes of prompts: its states before each layer, at the last token or as a mean over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from submerge.calibrate._applied import with_adapter
from submerge.calibrate._collect import collect
from submerge.calibrate._reducers import Mean
from submerge.calibrate._sources import load_backbone
from submerge.device import check_device
from submerge.store import Adapter, Checkpoint

__all__ = ["PromptPooling", "PromptStates", "prompt_states"]

PromptPooling: TypeAlias = Literal["last", "mean"]
"""What stands for a prompt: the state at its last token, or the mean of those at all of its tokens."""


class PromptStates(Mean):
    """The mean over prompts of a module's inputs x [n], pooled over each prompt, summed in float64.

    Each update is one prompt: it gets the rows of one pass.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import PromptStates
        >>> states = PromptStates(2, "last")
        >>> states.update(torch.tensor([[9.0, 9.0], [1.0, 2.0]]))
        >>> states.update(torch.tensor([[3.0, 0.0]]))
        >>> states.mean
        tensor([2., 1.], dtype=torch.float64)
    """

    def __init__(self, width: int, pooling: PromptPooling) -> None:
        super().__init__(width)
        self.pooling = pooling

    def update(self, rows: torch.Tensor) -> None:
        super().update(rows[-1:] if self.pooling == "last" else rows.double().mean(0, keepdim=True))


@torch.no_grad()
def prompt_states(
    base: Checkpoint,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    pooling: PromptPooling,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Return the mean states [sets, L, n] that sets of prompts have before each of L layers, float64.

    Each prompt runs by itself, so that none has padding.

    Args:
        base: a decoder of transformers, without the adapter.
        adapter: attached to it as it was trained, or where that cannot be, applied to its weights.
        prompts: for each set its prompts, as ids of tokens.
        pooling: what stands for a prompt.
        device: where the model runs.
        progress: called after each prompt with the number of prompts so far.

    Raises:
        RequestError: the model cannot be loaded, or the adapter does not fit it.
    """
    model = load_backbone(base.path).to(check_device(device, "device")).eval()
    names = _layers(model)
    width, done = int(model.get_input_embeddings().weight.shape[1]), 0  # type: ignore[operator]
    states = []
    with with_adapter(model, adapter):
        for of_set in prompts:
            reducers = {name: PromptStates(width, pooling) for name in names}
            batches = [{"input_ids": torch.tensor([ids])} for ids in of_set]
            before = done
            collect(model, batches, reducers, progress=lambda n, before=before: progress(before + n))  # type: ignore[misc]
            done += len(of_set)
            states.append(torch.stack([reducer.mean for reducer in reducers.values()]))
    return torch.stack(states)


def _layers(model: nn.Module) -> list[str]:
    """Return the paths of a decoder's layers, in their order."""
    layers = model.get_submodule("layers")
    return [f"layers.{number}" for number, _ in enumerate(layers.children())]
