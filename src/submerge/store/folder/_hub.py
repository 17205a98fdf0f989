"""Repositories of the Hugging Face Hub: fetched to the shared cache, or looked up there when offline."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from submerge.deferred import required
from submerge.errors import Problem, RequestError, WorkError
from submerge.store.folder._config import quantised_config
from submerge.store.folder._hub_files import needed_of_adapter, needed_of_model, tokenizer_files
from submerge.store.folder._index import read_index
from submerge.store.folder._input_settings import module_folders
from submerge.store.folder._weight_file import PICKLE_SUFFIXES, WeightFiles
from submerge.store.format import DTYPES, TensorEntry, read_json

__all__ = ["Fetched", "download_hint", "fetch", "fetch_config", "fetch_tokenizer"]

_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Fetched:
    """A repository in the cache: its snapshot folder and commit, and what is known of the rest.

    `choice` is the file that holds the weights, as the list of the repository says (None when only the
    cache was looked at). `headers` holds, by file, the tensors of weights that were not downloaded. `beside`
    are an adapter repository's weight files that are not the adapter's.
    """

    folder: Path
    commit: str
    choice: WeightFiles | None = None
    headers: Mapping[str, Mapping[str, TensorEntry]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


def fetch(
    repo_id: str,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    weights: bool = True,
    adapter: bool = False,
) -> Fetched:
    """Return a model's or an adapter's repository, downloaded as far as a merge needs it.

    The list of files is looked at first, then small files are fetched and the configuration is checked,
    then the weights, so that a repository that cannot be merged costs no download. With `HF_HUB_OFFLINE`
    or `TRANSFORMERS_OFFLINE` set, or without a network, only the cache is looked at. Raises
    `RequestError`, or `WorkError` when the network fails and the cache does not help. Without `weights`,
    only the headers of safetensors files that are not in the cache are read from the network.
    """
    hub = _library()
    names = _listed(hub, repo_id, revision)
    if isinstance(names, Fetched):
        return names
    needed = (needed_of_adapter if adapter else needed_of_model)(names, repo_id, allow_pickle)
    choice = needed.choice
    # by the revision as asked for, so that the cache remembers where a branch points
    folder = _download(hub, repo_id, revision, needed.small)
    if not adapter and (folder / "config.json").is_file():
        problems = quantised_config(read_json(folder / "config.json"), f"{repo_id}/config.json")
        if problems:
            raise RequestError(problems)
    files = list(_weights(folder, choice))
    if not adapter:
        inner = tuple(f"{place}/" for place in module_folders(folder))
        files += [name for name in names if name.startswith(inner) and name.endswith(".safetensors")]
    if weights or choice.pickled:
        complete = _download(hub, repo_id, folder.name, files)
        return Fetched(complete, folder.name, choice, beside=needed.beside)
    missing = [name for name in _weights(folder, choice) if not (folder / name).exists()]
    headers = {name: _header(hub, repo_id, folder, name) for name in missing}
    return Fetched(folder, folder.name, choice, headers, needed.beside)


def fetch_tokenizer(repo_id: str, revision: str | None = None) -> Fetched:
    """Return a repository of which the tokenizer's files alone are downloaded; raises as `fetch` does."""
    return _fetch_small(repo_id, revision, tokenizer_files)


def fetch_config(repo_id: str, revision: str | None = None) -> Fetched:
    """Return a repository of which the configuration alone is downloaded; raises as `fetch` does."""
    return _fetch_small(repo_id, revision, {"config.json"}.intersection)


def _fetch_small(repo_id: str, revision: str | None, choose: Callable[[list[str]], Iterable[str]]) -> Fetched:
    """Return a repository of which those files alone are downloaded that are chosen among its names."""
    hub = _library()
    names = _listed(hub, repo_id, revision)
    if isinstance(names, Fetched):
        return names
    folder = _download(hub, repo_id, revision, choose(names))
    return Fetched(folder, folder.name)


def _listed(hub: ModuleType, repo_id: str, revision: str | None) -> list[str] | Fetched:
    """Return the names of a repository's files, or what the cache has where the Hub is not to be asked."""
    if _offline(hub):
        return _cached(hub, repo_id, revision, "offline mode is on")
    try:
        info = hub.HfApi().repo_info(repo_id, revision=revision)
    except Exception as error:  # the library's errors come from several families, by version
        known = _known(hub, error, repo_id, revision)
        if known is not None:
            raise known from None
        reason = f"the Hub cannot be reached ({type(error).__name__}: {error})"
        return _cached(hub, repo_id, revision, reason)
    return [sibling.rfilename for sibling in info.siblings or ()]


def _header(hub: ModuleType, repo_id: str, folder: Path, name: str) -> dict[str, TensorEntry]:
    """Return the tensors of one weight file from its header alone, read through the network.

    Names, dtypes and shapes only: the file itself is checked when it has been downloaded.
    """
    try:
        header = hub.HfApi().parse_safetensors_file_metadata(repo_id, name, revision=folder.name)
    except hub.errors.SafetensorsParsingError as error:
        raise RequestError(Problem(f"the header is damaged ({error})", f"{repo_id}/{name}")) from None
    except Exception as error:  # as above
        raise WorkError(
            f"{repo_id}/{name}: the header cannot be read ({type(error).__name__}: {error}) — try again"
        ) from error
    entries = {}
    for tensor, info in sorted(header.tensors.items(), key=lambda item: item[1].data_offsets):
        if info.dtype not in DTYPES:
            what = f"tensor {tensor} is of the unknown type {info.dtype}"
            raise RequestError(Problem(what, f"{repo_id}/{name}", "update submerge"))
        begin, end = info.data_offsets
        entries[tensor] = TensorEntry(
            tensor, info.dtype, tuple(info.shape), folder / name, begin, end - begin
        )
    return entries


def download_hint(repo_id: str, revision: str | None) -> str:
    """Return the command that puts a repository into the cache."""
    return f"run `hf download {repo_id}{f' --revision {revision}' if revision else ''}` with a network"


def _library() -> ModuleType:
    for part in ("constants", "errors"):
        required(f"huggingface_hub.{part}", "models on the Hub need")
    return required("huggingface_hub", "models on the Hub need")


def _offline(hub: ModuleType) -> bool:
    """Return True if offline mode was on when the library was imported, or was switched on since."""
    settings = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return bool(hub.constants.HF_HUB_OFFLINE) or any(value.lower() in _TRUE for value in settings)


def _weights(folder: Path, choice: WeightFiles) -> Iterable[str]:
    if not choice.index:
        return [choice.name]
    suffixes = PICKLE_SUFFIXES if choice.pickled else (".safetensors",)
    return sorted(set(read_index(folder / choice.name, suffixes).values()))


def _download(hub: ModuleType, repo_id: str, revision: str | None, names: Iterable[str]) -> Path:
    try:
        folder: Any = hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=[glob.escape(name) for name in names]
        )
    except Exception as error:  # as above
        known = _known(hub, error, repo_id, revision)
        if known is not None:
            raise known from None
        raise WorkError(
            f"{repo_id}: the download failed ({type(error).__name__}: {error}) — run the command again; what "
            "was fetched is kept"
        ) from error
    return Path(folder)


def _known(hub: ModuleType, error: Exception, repo_id: str, revision: str | None) -> RequestError | None:
    """Return the user's error behind one of the library's, or None for a failure of the network."""
    kinds = hub.errors
    if isinstance(error, kinds.GatedRepoError):
        hint = f"ask for access at https://huggingface.co/{repo_id}, then `hf auth login`"
        return RequestError(Problem("the repository is gated", repo_id, hint))
    if isinstance(error, kinds.RevisionNotFoundError):
        what = f"has no branch, tag or commit {revision or 'main'!r}"
        return RequestError(Problem(what, repo_id, "look at the repository's versions on the Hub"))
    if isinstance(error, kinds.RepositoryNotFoundError):
        what = "there is no such folder here, and no such repository on the Hub (or it is private)"
        return RequestError(Problem(what, repo_id, "check the name; for a private one, `hf auth login`"))
    if isinstance(error, kinds.HFValidationError):
        return RequestError(Problem(f"is not a Hub id ({error})", repo_id, "write org/name"))
    return None


def _cached(hub: ModuleType, repo_id: str, revision: str | None, reason: str) -> Fetched:
    """Return a repository as the cache has it; `reason` says why the Hub is not asked."""
    try:
        # no pattern: find the folder; whoever opens it says which of the files it needs is missing
        folder = hub.snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=[])
    except hub.errors.HFValidationError as error:
        raise RequestError(Problem(f"is not a Hub id ({error})", repo_id, "write org/name")) from None
    except (OSError, ValueError):
        what = (
            f"revision {revision or 'main'} is neither a folder here nor in the cache "
            f"{hub.constants.HF_HUB_CACHE}, and {reason}"
        )
        raise RequestError(Problem(what, repo_id, download_hint(repo_id, revision))) from None
    return Fetched(Path(folder), Path(folder).name)
