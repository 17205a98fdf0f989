"""Folders of a composed model's modalities that are damaged, or of another merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from submerge.errors import RequestError
from submerge.store import MODALITIES, MODALITY_GATE, Manifest, Tokenizer, read_json

__all__ = ["damaged_modalities"]


def damaged_modalities(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files of each modality: config, processor, tokenizer."""
    gate = manifest.gate
    if gate is None or gate.method != MODALITY_GATE:
        return []
    places = [folder / MODALITIES / task["name"] for task in gate.tasks]
    problems = [f"{p}: there is no tokenizer here" for p in (folder, *places) if not _has_tokens(p)]
    for place, task in zip(places, gate.tasks, strict=True):
        problems += _damaged(place, task)
    return problems


def _has_tokens(folder: Path) -> bool:
    """Return whether a folder has a tokenizer's vocabulary: `load_processor` reads one in each."""
    return Tokenizer.among(folder, [Path(path.name) for path in folder.glob("*")], {}).complete


def _damaged(folder: Path, task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of one modality: files that cannot be read, and another placeholder's id."""
    for path in sorted({folder / "config.json", *folder.glob("*.json")}):
        try:
            data = read_json(path, "merge again")
        except RequestError as error:
            yield str(error)
            continue
        if path.name == "config.json" and task["placeholder_id"] not in _token_ids(data, task["kind"]):
            yield f"{path}: its {task['kind']} token is not {task['placeholder_id']}, as submerge.json says"


def _token_ids(config: Mapping[str, Any], kind: str) -> list[Any]:
    return [config.get(f"{kind}_{suffix}") for suffix in ("token_id", "token_index")]
