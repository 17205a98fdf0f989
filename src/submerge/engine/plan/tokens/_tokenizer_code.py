"""The code of a tokenizer, which travels with its files: what is missing, and what is another's."""

from __future__ import annotations

import filecmp
from pathlib import Path

from submerge.engine.plan.inputs import Inputs
from submerge.errors import few
from submerge.store import Tokenizer, is_tokenizer_file

__all__ = ["code_warnings"]


def code_warnings(tokenizer: Tokenizer, inputs: Inputs) -> list[str]:
    """Return which code of the output's tokenizer is not there, or has given way to the base's of its name.

    No code is run, and what the base's own code imports stays the base's.
    """
    base = inputs.reference_model
    label = inputs.tokenizer.label if inputs.tokenizer else base.label
    warnings = []
    if tokenizer.missing:
        what = f"its tokenizer_config.json names code that its folder lacks ({few(tokenizer.missing)})"
        warnings.append(
            f"{label}: {what}: copy it into the output, or transformers cannot load the tokenizer"
        )
    if tokenizer.folder != base.path and (other := _of_both(tokenizer, base.path, base.side_files)):
        what = f"{few(other)}, which its tokenizer's code imports, is another there than in {base.label}"
        warnings.append(f"{label}: {what}, whose model has the output's: the tokenizer may not load")
    return warnings


def _of_both(tokenizer: Tokenizer, folder: Path, beside: tuple[Path, ...]) -> list[str]:
    """Return the code of a tokenizer that a model's folder has under the same names, and otherwise."""
    shared = (file for file in tokenizer.files if not is_tokenizer_file(file) and file in beside)
    return [
        str(file) for file in shared if not filecmp.cmp(tokenizer.folder / file, folder / file, shallow=False)
    ]
