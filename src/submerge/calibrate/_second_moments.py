"""Second moments of the inputs of modules, one for each distinct input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from submerge.algebra import Moment
from submerge.calibrate._collect import ModelInputs, collect, run_observed
from submerge.calibrate._reducers import BLOCK, MomentReducer, SecondMoment
from submerge.errors import Problem, RequestError
from submerge.gating import Observer, StopForward, is_same

__all__ = ["collected_moments", "first_of_shared", "second_moments", "shared_inputs"]


def second_moments(
    model: nn.Module,
    batches: Sequence[ModelInputs],
    widths: Mapping[str, int],
    *,
    kind: str = "full",
    block: int = BLOCK,
    dtype: torch.dtype = torch.float64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Moment]:
    """Return the second moment of each module's inputs; modules with one input have one moment.

    The projections q, k and v of an attention get one tensor, as do gate and up of an MLP: their moments are
    one object, which is summed and held once. Padding does not count. The model runs as it is, in the mode
    that it is in. The moment of a module that the data does not reach is of 0 rows.

    Args:
        model: a model that takes the batches as keyword arguments, as of `collect`.
        batches: tensors by name; the first of them shows which modules share their input.
        widths: n, the number of inputs, by the names of the modules.
        kind: `full`, `block`, `diag` or `identity`; see `SecondMoment`, as for `block` and `dtype`.
        progress: called after each batch with the number of batches so far.

    Raises:
        RequestError: there are no batches, or the model refuses them.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> from submerge.calibrate import second_moments
        >>> model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
        >>> names = [f"model.layers.0.self_attn.{name}_proj" for name in "qko"]
        >>> batches = [{"input_ids": torch.tensor([[3, 14, 15, 9]])}]
        >>> q, k, o = second_moments(model, batches, dict.fromkeys(names, 64)).values()
        >>> q is k, q is o, o.count
        (True, False, 4)
    """
    if not batches:
        raise RequestError(Problem("there are no inputs", "data", "give a few dozen"))
    first_of = first_of_shared(model, batches[0], widths)
    reducers: dict[str, MomentReducer] = {
        first: SecondMoment(widths[first], kind, block=block, dtype=dtype)
        for first in dict.fromkeys(first_of.values())
    }
    moments = collected_moments(model, batches, reducers, progress)
    return {name: moments[first] for name, first in first_of.items()}


def first_of_shared(model: nn.Module, batch: ModelInputs, modules: Iterable[str]) -> dict[str, str]:
    """Return, by module, the first with its input, as `shared_inputs`; one that does not run is alone."""
    modules = list(modules)
    shared = shared_inputs(model, batch, modules)
    first_of = {name: first for first, names in shared.items() for name in names}
    return {name: first_of.get(name, name) for name in modules}


def collected_moments(
    model: nn.Module,
    batches: Sequence[ModelInputs],
    reducers: dict[str, MomentReducer],
    progress: Callable[[int], None] | None,
) -> dict[str, Moment]:
    """Return the moments of modules' inputs, after all batches ran.

    The reducers are taken out of `reducers`, so that there is a copy of the sums of one at a time.
    """
    with torch.no_grad():
        collect(model, batches, reducers, progress=progress)
    return {name: reducers.pop(name).moment for name in list(reducers)}


def shared_inputs(model: nn.Module, batch: ModelInputs, modules: Iterable[str]) -> dict[str, list[str]]:
    """Return the modules that get the same input, by the first of them, from a pass over one batch.

    Inputs are the same where they are one tensor that nothing has changed in between. Modules that do not run
    are left out; of one that runs several times the first input counts, as in `collect`.

    Examples:
        >>> import torch
        >>> from submerge.calibrate import shared_inputs
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
        >>> modules = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
        >>> shared = shared_inputs(model, {"input_ids": torch.tensor([[3, 14]])}, modules)
        >>> [len(names) for names in shared.values()]
        [2, 1]
    """
    observer = _InputObserver(modules)
    with torch.no_grad():
        run_observed(model, batch, observer.left, observer)
    return {first.names[0]: first.names for first in observer.inputs}


@dataclass
class _SharedInput:
    """An input, held so that no other takes its place in memory, with its version and its modules."""

    tensor: torch.Tensor
    version: int
    names: list[str]


class _InputObserver(Observer):
    """Groups modules by their inputs, and ends the pass after the last of them."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.left = dict.fromkeys(modules)
        self.inputs: list[_SharedInput] = []

    def on_input(self, name: str, module: nn.Module, x: Any) -> None:
        if name not in self.left:
            return
        del self.left[name]
        same = (one for one in self.inputs if is_same(one.tensor, x) and one.version == x._version)
        if (shared := next(same, None)) is not None:
            shared.names.append(name)
        else:
            self.inputs.append(_SharedInput(x, x._version, [name]))
        if not self.left:
            raise StopForward
