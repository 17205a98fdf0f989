"""A folder that holds a LoRA adapter, opened: its files chosen, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.store.adapter._adapter import Adapter
from submerge.store.adapter._build import build_parts
from submerge.store.adapter._config import ADAPTER_CONFIG, read_adapter_config
from submerge.store.adapter._narrow import narrow_tensors, widened
from submerge.store.adapter._parts import Part, Replace
from submerge.store.adapter._untold import untold_fields
from submerge.store.folder import (
    Fetched,
    HubId,
    Tokenizer,
    WeightFiles,
    choose_adapter,
    fetch,
    is_readable,
    locate,
    side_files,
    weights_beside,
    with_sibling,
)
from submerge.store.format import InMemory, TensorEntry, load_pickled, memory_entry, read_header

__all__ = ["is_adapter", "open_adapter"]

_TIED_BY_PEFT = frozenset({"embed_tokens", "lm_head"})
"""Its `EMBEDDING_LAYER_NAMES`."""


def is_adapter(path: Path) -> bool:
    """Return True for a folder that holds an adapter, and not a model with an adapter's configuration."""
    if not (path / ADAPTER_CONFIG).is_file():
        return False
    if any((path / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        return True
    return next(path.glob("*.safetensors"), None) is None


def open_adapter(
    spec: str, *, root: Path | None = None, allow_pickle: bool = False, download: bool = True
) -> Adapter:
    """Return the adapter that `spec` names: a folder with `adapter_config.json`, or `org/name[@revision]`.

    Relative paths start at `root` (default: the current folder). Only headers are read; with
    `download` false not even a Hub id's weights are fetched, where headers can be read without. Raises
    `RequestError` with everything that is wrong with the files, or that is no update of the weights.
    """
    root = Path.cwd() if root is None else root
    place = locate(spec, root)
    if isinstance(place, HubId):
        try:
            fetched = fetch(
                place.repo, place.revision, allow_pickle=allow_pickle, weights=download, adapter=True
            )
        except RequestError as error:
            raise with_sibling(error, spec, root) from None
        return replace(_open(fetched.folder, spec, allow_pickle, fetched), revision=fetched.commit)
    if not place.is_dir():
        hint = "name the folder that holds it, with its adapter_config.json"
        raise RequestError(Problem("is a file where an adapter's folder is expected", str(place), hint))
    return _open(place, spec, allow_pickle)


def _open(folder: Path, label: str, allow_pickle: bool, fetched: Fetched | None = None) -> Adapter:
    if not is_readable(folder):
        raise RequestError(Problem("the folder cannot be read", str(folder), "check the permissions"))
    choice = fetched.choice if fetched else None
    choice = choice or choose_adapter(_names(folder), str(folder), allow_pickle=allow_pickle)
    headers = fetched.headers if fetched else {}
    weights: _AdapterTensors | None = None
    problems: Sequence[Problem] = ()
    try:
        weights = _read_weights(folder, choice, headers)
    except RequestError as error:
        problems = error.problems
    try:
        config = read_adapter_config(folder / ADAPTER_CONFIG)
    except RequestError as error:
        raise RequestError([*error.problems, *problems]) from None
    if weights is None:
        raise RequestError(problems)
    files = side_files(folder)
    parts, notes = build_parts(weights.entries, config, str(folder / choice.name))
    base, revision = config.raw.get("base_model_name_or_path"), config.raw.get("revision")
    beside = fetched.beside if fetched and fetched.beside else weights_beside(_names(folder))
    return Adapter(
        label=label,
        path=folder,
        revision=None,
        config=_with_true_ties(config.raw, parts),
        base=str(base) if base else None,
        base_revision=str(revision) if revision else None,
        parts=parts,
        notes=(*config.notes, *notes),
        files=(folder / choice.name,),
        memory=weights.memory,
        pending=choice.name in headers,
        tokenizer=Tokenizer.among(folder, files.copied, files.links),
        left_out=(*_left_out(beside), *untold_fields(config, parts)),
    )


def _with_true_ties(raw: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return a configuration in which `ensure_weight_tying` stands where PEFT trained one update for both.

    It looks for two names of modules alone: of a table that is called `wte` or `shared` it trains a copy.
    What it saves in full counts where it was asked to, and not for a vocabulary that was resized.
    """
    saves = bool(raw.get("modules_to_save"))
    trained = [name for name, part in parts.items() if saves or not isinstance(part, Replace)]
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in trained}
    return {key: v for key, v in raw.items() if key != "ensure_weight_tying" or modules & _TIED_BY_PEFT}


def _left_out(beside: Sequence[str]) -> list[str]:
    """Return that weights beside an adapter are no part of it, if there are any."""
    what = "weights beside it are no part of an adapter, and are left out"
    return [f"{what}: {few(beside)}"] if beside else []


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.is_dir()] + [
        f"{entry.name}/{ADAPTER_CONFIG}" for entry in folder.iterdir() if (entry / ADAPTER_CONFIG).is_file()
    ]


@dataclass(frozen=True)
class _AdapterTensors:
    """The tensors of an adapter's file, by its keys, and their values where they had to be read."""

    entries: Mapping[str, TensorEntry]
    memory: Mapping[str, InMemory] = field(default_factory=dict)


def _read_weights(
    folder: Path, choice: WeightFiles, headers: Mapping[str, Mapping[str, TensorEntry]]
) -> _AdapterTensors:
    memory: Mapping[str, InMemory] = {}
    pending = choice.name in headers
    if pending:
        entries = headers[choice.name]
    elif choice.pickled:
        tensors = load_pickled(folder / choice.name)
        memory, entries = tensors, {name: memory_entry(name, tensor) for name, tensor in tensors.items()}
    else:
        entries = read_header(folder / choice.name).entries
    return _AdapterTensors(*widened(entries, narrow_tensors(entries), memory, pending=pending))
