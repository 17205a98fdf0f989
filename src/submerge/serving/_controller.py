"""What stands between a call of a gated model and its forward: one `Controller` a kind of gate.

A controller decides which updates act where. `begin` does so for one call, and the model's class runs what it
returns:

    call = controller.begin(model, inputs, request)
    with call.context: out = forward(**call.inputs), under call.assignment
    return call.restore(out)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from submerge.gating import Assignment, Gate, GatedModel, joined
from submerge.serving._folder import Folder, open_folder

__all__ = ["Call", "Controller"]


def _unchanged(out: Any) -> Any:
    return out


@dataclass(frozen=True)
class Call:
    """One call of a gated model, as it runs.

    Attributes:
        inputs: of the model, in the order of the assignment.
        assignment: which updates act on which rows; None: the model runs as it is.
        restore: from the output of the run to that of the call, in the order of the caller's inputs.
        join: of the outputs of a batch that has to run group by group.
        context: in which the run takes place.

    Examples:
        >>> import torch
        >>> from submerge.gating import ConstantAssignment
        >>> from submerge.serving import Call
        >>> call = Call({"input_ids": torch.tensor([[3, 14]])}, ConstantAssignment(torch.ones(2)))
        >>> call.restore("the output")
        'the output'
    """

    inputs: dict[str, Any]
    assignment: Assignment | None
    restore: Callable[[Any], Any] = _unchanged
    join: Callable[[Sequence[Any]], Any] = joined
    context: AbstractContextManager[None] = field(default_factory=nullcontext)


class Controller(ABC):
    """The gate of a loaded model, as its class uses it: one row in the table that `load` reads.

    `members` are what the class has beside `forward` and `generate`, such as methods that only route.

    Examples:
        >>> from submerge.serving import CONTROLLERS, Controller
        >>> all(issubclass(kind, Controller) for kind in CONTROLLERS.values())
        True
    """

    members: ClassVar[Mapping[str, Any]] = {}
    saves_weights: ClassVar[bool] = True
    """Whether the model that runs is the checkpoint of its folder, which transformers may write."""
    gated: GatedModel

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Return what a folder of this kind holds, read and checked."""
        return open_folder(path)

    @classmethod
    @abstractmethod
    def configured(cls, folder: Folder, settings: Mapping[str, Any]) -> Folder:
        """Return a folder of this kind with the settings of the caller of `load`, checked."""

    @classmethod
    @abstractmethod
    def attach(
        cls, model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
    ) -> Controller:
        """Gate a model's modules in place, and return its controller.

        `names` are the model's names of the folder's tensors. With `heads` the model has the tasks' own
        modules, and with `partial` it is only a part of the checkpoint.
        """

    @classmethod
    def arguments(cls, folder: Folder) -> tuple[str, ...]:
        """Return the names of data that calls of the model take beside those of its class.

        The signature of `forward` has them, by which transformers' Trainer chooses columns.
        """
        return ()

    @abstractmethod
    def request(self, arguments: MutableMapping[str, Any]) -> Any:
        """Return what a call says to the gate, which is taken out of the call's keyword arguments."""

    @abstractmethod
    def begin(self, model: Any, inputs: dict[str, Any], request: Any) -> Call:
        """Return a call of the model's forward as it runs."""

    @abstractmethod
    def begin_generate(self, model: Any, inputs: dict[str, Any], request: Any) -> Call:
        """Return a call of the model's `generate` as it runs.

        With an assignment the gate decides once, on the prompt; without one each forward inside is begun.
        """

    def save(self, folder: Path) -> None:  # noqa: B027 — not every gate has something to save
        """Write beside the model that was saved in a folder what a load of it needs."""
