"""`save_pretrained` of a model with a gate, which writes what a load needs or refuses its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.serving._controller import Controller

__all__ = ["saving"]


def saving(kind: Any) -> Callable[..., None]:
    """Return the `save_pretrained` of a gated subclass of a transformers class."""

    @functools.wraps(kind.save_pretrained)
    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        plain = functools.partial(kind.save_pretrained, self)
        given = inspect.signature(plain).bind(save_directory, is_main_process, *args, **kwargs).arguments
        _check({**given, **given.get("kwargs", {})}, self.controller, type(self).__name__)
        if is_main_process:  # first: without it the weights would look whole
            self.controller.save(Path(save_directory))
        if self.controller.saves_weights:
            plain(save_directory, is_main_process, *args, **kwargs)

    return save_pretrained


def _check(given: Mapping[str, Any], controller: Controller, where: str) -> None:
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
