"""From what a recipe names to a checkpoint: its files chosen, every header checked, nothing else read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store._checkpoint import Checkpoint
from submerge.store._weights import WeightReader
from submerge.store.adapter import is_of_lora, narrow_factors, widened
from submerge.store.folder import (
    PICKLE_SUFFIXES,
    Fetched,
    HoldsAdapterError,
    HubId,
    WeightFiles,
    choose_weights,
    download_hint,
    fetch,
    fetch_config,
    fetch_tokenizer,
    is_readable,
    locate,
    pickle_refusal,
    quantised_config,
    side_files,
    unmergeable_tensors,
    with_sibling,
)
from submerge.store.format import read_json

__all__ = ["open_checkpoint", "open_config", "open_tokenizer"]


_BEFORE = "give the LoRA as it was before that, in float16, bfloat16 or float32"


def open_checkpoint(
    spec: str, *, root: Path | None = None, allow_pickle: bool = False, download: bool = True
) -> Checkpoint:
    """Return the checkpoint that `spec` names: a folder, a safetensors file, or `org/name[@revision]`.

    Relative paths start at `root` (default: the current folder). Only headers are read; with
    `download` false not even a Hub id's weights are fetched, where headers can be read without. Raises
    `RequestError` with everything that is wrong with the files.
    """
    root = Path.cwd() if root is None else root
    place = locate(spec, root)
    if isinstance(place, HubId):
        try:
            fetched = fetch(place.repo, place.revision, allow_pickle=allow_pickle, weights=download)
        except HoldsAdapterError:
            raise
        except RequestError as error:
            raise with_sibling(error, spec, root) from None
        hint = download_hint(place.repo, place.revision)
        return replace(
            _open_folder(fetched.folder, spec, allow_pickle, hint, fetched), revision=fetched.commit
        )
    if place.is_dir():
        return _open_folder(place, spec, allow_pickle, "copy or download the missing file")
    return _open_file(place, spec, allow_pickle)


def open_config(spec: str, *, root: Path) -> dict[str, Any] | None:
    """Return the configuration of a model whose weights need not be there; None where it has none.

    Raises `RequestError` where there is no such place, or where the file is damaged, and `WorkError` where
    the network fails.
    """
    place = locate(spec, root)
    folder = fetch_config(place.repo, place.revision).folder if isinstance(place, HubId) else place
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    return read_json(path) if path.is_file() else None


def open_tokenizer(spec: str, *, root: Path) -> Checkpoint:
    """Return a model of which the tokenizer alone is there: a folder's or a repository's, without weights.

    Raises `RequestError` where there is no such place.
    """
    place, commit = locate(spec, root), None
    if isinstance(place, HubId):
        try:
            fetched = fetch_tokenizer(place.repo, place.revision)
        except RequestError as error:
            raise with_sibling(error, spec, root) from None
        place, commit = fetched.folder, fetched.commit
    if not place.is_dir():
        hint = "name the folder that holds its files"
        raise RequestError(Problem("a file is named where a tokenizer is needed", spec, hint))
    beside = side_files(place)
    return Checkpoint(spec, place, commit, {}, {}, side_files=beside.copied, links=beside.links)


def _open_folder(
    folder: Path, label: str, allow_pickle: bool, hint: str, fetched: Fetched | None = None
) -> Checkpoint:
    if not is_readable(folder):
        raise RequestError(Problem("the folder cannot be read", str(folder), "check the permissions"))
    headers = fetched.headers.items() if fetched else ()
    weights = WeightReader(headers={folder / file: entries for file, entries in headers})
    config_path = folder / "config.json"
    config = weights.attempt(lambda: read_json(config_path)) if config_path.is_file() else None
    choice = fetched.choice if fetched else None
    choice = choice or weights.attempt(lambda: _choose(folder, allow_pickle))
    if choice is None:
        raise RequestError([*(quantised_config(config, config_path) if config else ()), *weights.problems])
    if choice.index:
        weights.add_indexed(folder / choice.name, pickled=choice.pickled, hint=hint)
    elif not weights.exists(folder / choice.name):  # a link of the Hub cache whose blob is gone
        weights.problems.append(
            Problem(f"the file {choice.name} is a link that leads nowhere", str(folder), hint)
        )
    else:
        weights.add(choice.name, weights.read(folder / choice.name, pickled=choice.pickled) or {})
    if config is not None:
        found = list(weights.tensors.values())
        weights.problems[:0] = quantised_config(config, config_path, found)
    beside, read = side_files(folder), {*weights.shards.values()}
    model = Checkpoint(
        label=label,
        path=folder,
        revision=None,
        tensors={},
        shards={},
        config=config,
        side_files=beside.copied,
        other_weights=tuple(file for file in beside.weights if file.as_posix() not in read),
        links=beside.links,
        pending=bool(weights.headers),
    )
    return _checked(weights, model)


def _open_file(path: Path, label: str, allow_pickle: bool) -> Checkpoint:
    pickled = path.name.endswith(PICKLE_SUFFIXES)
    if pickled and not allow_pickle:
        raise RequestError(pickle_refusal(str(path)))
    if path.name.endswith(".json"):
        raise RequestError(Problem("is not a weight file", str(path), "name the folder that holds it"))
    weights = WeightReader()
    weights.add(path.name, weights.read(path, pickled=pickled) or {})
    return _checked(weights, Checkpoint(label, path, None, {}, {}))


def _checked(weights: WeightReader, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its tensors in place, or raise everything that is wrong.

    Factors of LoRA in 8 bits are widened: a LoRA file is opened as a checkpoint, too.
    """
    if factors := narrow_factors(weights.tensors):
        pending = checkpoint.pending
        weights.tensors, weights.memory = widened(weights.tensors, factors, weights.memory, pending=pending)
    problems = unmergeable_tensors(weights.tensors.values(), checkpoint.path)
    if any(map(is_of_lora, weights.tensors)):
        problems = [replace(problem, hint=_BEFORE) for problem in problems]
    weights.problems.extend(problems)
    if not weights.tensors and not weights.problems:
        weights.problems.append(Problem("holds no tensors", str(checkpoint.path), "give the right file"))
    if weights.problems:
        raise RequestError(weights.problems)
    return replace(checkpoint, tensors=weights.tensors, shards=weights.shards, memory=weights.memory)


def _choose(folder: Path, allow_pickle: bool) -> WeightFiles:
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    return choose_weights(
        [entry.name for entry in entries if not entry.is_dir()],
        str(folder),
        allow_pickle=allow_pickle,
        subfolders=[inner.name for inner in folders if next(inner.glob("*.safetensors"), None) is not None],
    )
