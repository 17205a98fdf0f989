"""A transformers encoder as a function from rows to unit features; what differs between kinds of input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.replication.rows import CLASSES, DENSE, Rows

__all__ = ["Domain", "Items", "by_length"]


class Items(ABC):
    """Rows as an encoder takes them; `labels` are in the rows' order."""

    labels: torch.Tensor
    kind: str = CLASSES

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(
        self, which: Sequence[int], device: torch.device | str = "cpu", draw: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the model's arguments for these rows; in training `draw` may change them a little."""

    @abstractmethod
    def batches(self) -> list[list[int]]:
        """Return all rows' numbers, in batches for use without gradients."""

    def in_batches(self, run: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Return the rows [n, …] that `run` makes of those of each batch, in the order of all rows."""
        batches = self.batches()
        order = torch.tensor([number for which in batches for number in which])
        return torch.cat([run(which) for which in batches])[order.argsort()]


def by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the numbers of rows of so many tokens, in batches of like lengths that hold about `tokens`.

    Padding is counted; a row that is longer than that has a batch of its own.
    """
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


class Domain(ABC):
    """What a kind of input gives its suites. Training, merging and scoring know nothing else of it."""

    targets: str
    """The modules that adapters are put on, as a regular expression."""
    beside: tuple[str, ...] = ()
    """How the base's files begin that belong beside a tuned model, too."""

    @abstractmethod
    def items(self, rows: Rows, base: Path, kind: str = CLASSES) -> Items:
        """Return rows of a kind of task as the base's encoder takes them."""

    @abstractmethod
    def cell(self, value: Any) -> Any:
        """Return a column of a data set on the Hub as it stands in a row."""

    @abstractmethod
    def frozen(self, model: Any) -> list[torch.nn.Module]:
        """Return the modules that a full fine-tune leaves as they are."""

    @abstractmethod
    def means(self, hidden: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean over an input's tokens at length one, shape [n, d]."""

    def places(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return each place's token at length one, shape [n, places, d], for dense targets."""
        raise NotImplementedError(f"{type(self).__name__} has no dense targets")

    def facts(self) -> dict[str, Any]:
        """Return what decides about results: part of every marker."""
        return {}

    def fresh(self, base: Path) -> Any:
        """Return the base, to be trained or used."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(base)

    def load(self, folder: Path, base: Path, device: torch.device | str = "cpu") -> Any:
        """Return the model of a folder, for use: a checkpoint, or a PEFT adapter on the base."""
        if (folder / "adapter_config.json").exists():
            from peft import PeftModel

            model = PeftModel.from_pretrained(self.fresh(base), folder).merge_and_unload()
        else:
            model = self.fresh(folder)
        return model.to(device).eval()

    def pooled(self, hidden: torch.Tensor, batch: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
        """Return the features that a task's head reads: one of each input, or of each place."""
        return self.places(hidden) if kind == DENSE else self.means(hidden, batch)

    @torch.inference_mode()
    def features(self, model: Any, items: Items, *, layers: bool = False, **more: Any) -> torch.Tensor:
        """Return unit features on the CPU, shape [n, d], or [n, places, d] of dense targets.

        With `layers`, return the means of every layer's tokens, shape [n, layers + 1, d]. What else is given
        goes to the model.
        """

        def run(which: list[int]) -> torch.Tensor:
            batch = items.batch(which, model.device)
            out = model(**batch, output_hidden_states=layers, **more)
            if layers:
                return torch.stack([self.means(state, batch) for state in out.hidden_states], 1).float().cpu()
            return self.pooled(out.last_hidden_state, batch, items.kind).float().cpu()

        return items.in_batches(run)
