"""Options of transformers' `save_pretrained` that a model with a gate cannot do what they say for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.serving._controller import Controller

__all__ = ["check_saving"]


def check_saving(controller: Controller, given: Mapping[str, Any], where: str) -> None:
    """Raise `RequestError` where a model would be saved otherwise than asked for, before anything is written.

    A folder with a gate has weights of one name, and a bank beside them, which transformers does not upload.
    """
    if given.get("variant") is not None:
        hint = f"leave it out; for another dtype use {_half(controller)}"
        raise RequestError(Problem("variant: a folder with a gate has weights without one", where, hint))
    if given.get("push_to_hub"):
        what = "push_to_hub: transformers would upload the weights without what the gate needs"
        hint = "call model.push_to_hub(…), which uploads all, or upload the folder that was saved"
        raise RequestError(Problem(what, where, hint))
    if given.get("state_dict") is not None and not controller.saves_weights:
        what = "state_dict: the folder of this model is copied as it was loaded"
        hint = "leave it out; a fine-tune that has changed is merged again"
        raise RequestError(Problem(what, where, hint))


def _half(controller: Controller) -> str:
    """Return how a model is saved in a narrower dtype, or loaded, where a copy of its folder is saved."""
    if controller.saves_weights:
        return "model.half().save_pretrained(…)"
    return 'load("…", dtype="float16")'
