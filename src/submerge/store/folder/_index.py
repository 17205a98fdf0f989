"""The index of a sharded checkpoint, `*.safetensors.index.json`: which file holds which tensor."""

from __future__ import annotations

from pathlib import Path

from submerge.errors import Problem, RequestError, few
from submerge.store.format import read_json

__all__ = ["read_index"]


def _plain(name: str) -> bool:
    """Return True for the name of a file in this folder or below, and nothing that could lead elsewhere."""
    is_plain = not any(mark in name for mark in "\\:\0") and name.isprintable()
    return is_plain and all(part.strip(". ") for part in name.split("/"))


def _leads_out(folder: Path, file: str) -> bool:
    """Return whether a file lies in a subfolder that is a link to somewhere else."""
    return not (folder / file).parent.resolve().is_relative_to(folder.resolve())


def read_index(path: Path, suffixes: tuple[str, ...] = (".safetensors",)) -> dict[str, str]:
    """Return tensor name → weight file name, as an index says; raise `RequestError` if it is not sound.

    Files must lie beside the index or in folders below: any path would let an index make us read anything.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        hint = "download the index again"
        raise RequestError(Problem("has no weight_map that maps tensors to files", str(path), hint))
    problems = []
    for file in dict.fromkeys(
        value if isinstance(value, str) else repr(value) for value in weight_map.values()
    ):
        if not _plain(file) or _leads_out(path.parent, file):
            what = f"weight_map names {file!r}, a path trick: shards lie beside the index or below it"
            problems.append(
                Problem(what, str(path), "do not use this checkpoint unless you know who made it")
            )
        elif not file.endswith(suffixes):
            what = f"weight_map names {file!r}, which is no {' or '.join(suffixes)} file"
            problems.append(Problem(what, str(path), "download the index again"))
    wrong = [name for name, value in weight_map.items() if not isinstance(value, str)]
    if wrong:
        what = f"weight_map gives no file name for {few(wrong)}"
        problems = [Problem(what, str(path), "download the index again")]
    if problems:
        raise RequestError(problems)
    return weight_map
