"""What was found in a merged folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["VerifyReport"]


@dataclass
class VerifyReport:
    """What was checked of a folder, and what was found.

    Attributes:
        folder: what was checked.
        tensors: how many were read.
        bytes: of them.
        nonfinite: for a tensor, how many values are NaN or Inf.
        problems: what is wrong; empty for a sound folder.
        skipped: what was not checked, and why.
        loaded: the class of transformers that loaded the folder.

    Examples:
        >>> import submerge
        >>> report = submerge.merge("recipe.yaml", "merged")
        >>> found = submerge.verify("merged")
        >>> found.sound, found.tensors, found.loaded
        (True, 39, 'LlamaForCausalLM')
    """

    folder: Path
    tensors: int = 0
    bytes: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    loaded: str = ""

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {**vars(self), "folder": str(self.folder), "sound": self.sound}
