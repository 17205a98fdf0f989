"""What is trained once for all seeds: the language model, the encoders, and models with new projectors."""

from __future__ import annotations

from pathlib import Path

from benchmarks.console import say
from benchmarks.replication.cache import Cache, Result, cached, timed
from benchmarks.replication.multimodal.encoders import write_image_encoder
from benchmarks.replication.multimodal.inputs import images
from benchmarks.replication.multimodal.suite import Multimodal
from benchmarks.replication.multimodal.unions import WRITERS
from benchmarks.replication.suite import Base

__all__ = ["write_union"]


def write_union(suite: Multimodal, cache: Cache, modality: str, data: Path) -> Path:
    """Return the folder of a multimodal model with a new projector; it and what it is made of are cached."""
    _write_base(suite.lm, suite.lm_folder(cache), {"base": suite.lm.home})
    config = {"lm": suite.lm.home, "modality": modality}
    if modality == "image":
        _write_base(suite.eyes, suite.eyes_folder(cache), {"base": suite.eyes.home, **suite.eyes.facts})
        _write_encoder(suite, cache, data)
        config |= {"encoder": suite.encoder, "eyes": suite.eyes.home}
    folder, encoder = suite.union(cache, modality), suite.encoder_folder(cache)
    cached(folder, config, lambda part, _: WRITERS[modality](suite.lm_folder(cache), encoder, part))
    return folder


def _write_base(base: Base, folder: Path, config: Result) -> None:
    def make(part: Path, measured: Result) -> None:
        with timed(measured):
            base.write(part)

    cached(folder, config, make)


def _write_encoder(suite: Multimodal, cache: Cache, data: Path) -> None:
    def make(part: Path, measured: Result) -> None:
        write_image_encoder(suite.eyes_folder(cache), part, images(data), suite.encoder, measured, say)
        say(f"encoder of pictures: {measured['accuracy']}")

    cached(suite.encoder_folder(cache), suite.encoder | {"base": suite.eyes.home}, make)
