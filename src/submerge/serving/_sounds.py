"""Sounds of a call as its specialist's processor takes them: one channel of floats each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from submerge.errors import Problem, RequestError
from submerge.serving._media import is_waveform

__all__ = ["read_sounds"]


def read_sounds(sounds: Any, processor: Any, where: str) -> Any:
    """Return sounds with arrays, tensors and lists of values as float32 arrays of shape [n]; files stay.

    The feature extractors of transformers take a list of tensors for one sound, and an array [1, n], as
    torchaudio returns it, for a batch; integers they take as they are, though encoders are trained on values
    from -1 to 1. `processor` is not needed. Raises `RequestError` for several channels, and for integers.
    """
    if isinstance(sounds, list | tuple):
        if not is_waveform(sounds):
            return [read_sounds(sound, processor, where) for sound in sounds]
        sounds = np.asarray(sounds)
    if torch.is_tensor(sounds):
        sounds = sounds.detach().cpu()
        sounds = (sounds.float() if sounds.is_floating_point() else sounds).numpy()
    return _waveform(sounds, where) if isinstance(sounds, np.ndarray) else sounds


def _waveform(values: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Return the values of one sound as an array of shape [n]."""
    if not np.issubdtype(values.dtype, np.floating):
        hint = "give floats from -1 to 1: values of int16 divided by 32768"
        raise RequestError(Problem(f"a sound has values of {values.dtype}", where, hint))
    if values.size != max(values.shape, default=0):
        what = f"a sound has the shape {list(values.shape)}, and processors take one channel"
        raise RequestError(Problem(what, where, "give the mean of its channels, or a list of sounds"))
    return values.reshape(-1).astype(np.float32, copy=False)
