"""The level from which a router's scores count at each map: the mean of those of reference inputs e_i.

Activations have a part that all inputs have in common. An adapter whose factors happen to read more of it
than those of others would be found for inputs of other tasks, too. So a task counts by how far it is above
its own level,

    r_t(x) − mean_i r_t(e_i).

`reference_inputs` are noise, which needs no data. Unlabelled inputs of the tasks, all mixed, are better, and
nobody needs to know whose they are: a `RouterReference` holds their level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from submerge.errors import Problem, RequestError, few

__all__ = ["REFERENCE_INPUTS", "RouterReference", "check_first_pass", "reference_inputs"]

REFERENCE_INPUTS = 16
LENGTH = 10
"""Token ids of a random text. On validation prompts for eight skills of a chat LM 8 to 15 find as many."""


@dataclass(frozen=True)
class RouterReference:
    """The level of a router's scores by unlabelled inputs, of which nobody said whose they are.

    Attributes:
        levels: mean scores [maps, T], in the order of the sites' maps.
        settings: of the first pass that the inputs were looked at in.
        count: how many inputs there were.
        found: the share of them that each task gets, by its name, with this level.
    """

    levels: torch.Tensor
    settings: Mapping[str, Any]
    count: int
    found: Mapping[str, float]

    @property
    def nbytes(self) -> int:
        """The bytes of the file that holds it, but for its header."""
        return self.levels.nbytes

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as plain data for JSON, without the levels."""
        return {
            "inputs": self.count,
            "maps": len(self.levels),
            "bytes": self.nbytes,
            "found": dict(self.found),
        }

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """Raise `RequestError` where the first pass now is another than that of the inputs."""
        check_first_pass(self.settings, settings, where)


def check_first_pass(calibrated: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` where a folder was calibrated with other settings of the first pass."""
    changed = [name for name, value in now.items() if calibrated.get(name) != value]
    if changed:
        what = f"the folder was calibrated with other settings of the first pass: {few(changed)}"
        hint = 'leave it out with calibration="none", or merge with these settings and calibrate again'
        raise RequestError(Problem(what, where, hint))


def reference_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return noise that a model takes in the place of its main input; `inputs` are a batch for it.

    Token ids are drawn from all that have no role of their own in the configuration. Numbers, of images and
    sounds, are normal, in the shape of the batch's. Empty where the batch has no such numbers, or ids of
    several streams.
    """
    name = model.main_input_name
    given = inputs.get(name)
    draw = torch.Generator().manual_seed(0)
    if isinstance(given, torch.Tensor) and given.is_floating_point():
        noise = torch.randn(REFERENCE_INPUTS, *given.shape[1:], generator=draw)
        return {name: noise.to(given)}
    if name != "input_ids" or (isinstance(given, torch.Tensor) and given.ndim != 2):
        return {}
    ordinary = torch.ones(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
    ordinary[[i for i in _with_roles(model.config.to_dict()) if 0 <= i < len(ordinary)]] = False
    ids = ordinary.nonzero().flatten()
    chosen = torch.randint(len(ids), (REFERENCE_INPUTS, LENGTH), generator=draw)
    return {name: ids[chosen].to(model.device)}


def _with_roles(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the token ids that a configuration, or one within it, gives a role: padding, an image, …"""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _with_roles(value)
        elif str(key).endswith(("_token_id", "_token_index")):
            yield from (i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
