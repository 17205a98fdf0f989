"""The model card of an exported merge, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from submerge._version import __version__
from submerge.continual._manifest import BaseRecord

__all__ = ["export_card"]


def export_card(
    name: str,
    form: str,
    *,
    base: BaseRecord,
    tasks: Sequence[str],
    weights: Mapping[str, float],
    mixes: bool,
) -> str:
    """Return the text of README.md, with what the Hub reads of it; `mixes` says that there is a gate."""
    mixed = "With the projector of each task: `submerge.load` mixes their outputs for each image."
    library, kind, tags = (
        ("peft", "adapter", ["lora"]) if form == "adapter" else ("transformers", "merge", [])
    )
    front = {"library_name": library, "tags": ["merge", "submerge", *tags]}
    if base.revision:
        front = {"base_model": [base.model], "base_model_relation": kind, **front}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        f"# {name}",
        "",
        f"Merged with Submerge {__version__}, without training, by least squares over the tasks' inputs "
        "(LPM, arXiv 2604.14016).",
        "",
        f"Base: `{base.spec}`",
        "",
        *((mixed, "") if mixes else ()),
        "Tasks:",
        "",
        *(f"* `{task}`" + (f", weight {weights[task]:g}" if task in weights else "") for task in tasks),
        "",
    ]
    return "\n".join(lines)
