"""Which files of a repository on the Hub a merge needs, by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from submerge.store.folder._side_files import is_side_file
from submerge.store.folder._tokenizer import is_tokenizer_file
from submerge.store.folder._weight_file import (
    MLX_ADAPTERS,
    WeightFiles,
    choose_adapter,
    choose_weights,
    weights_beside,
)

__all__ = ["NeededFiles", "needed_of_adapter", "needed_of_model", "tokenizer_files"]

# a repository may also hold pictures and archives, which a merged model does not need
_SIDE_SUFFIXES = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".py",
    ".md",
    ".yml",
    ".yaml",
    ".spm",
    ".tiktoken",
    ".tsv",
    ".codes",
    ".npy",
    ".npz",
    "spk_dict.pt",
)
_LICENCES = ("license", "licence", "notice", "use_policy", "copying")


@dataclass(frozen=True)
class NeededFiles:
    """Which files of a repository a merge needs: the weights, and small ones, to be looked at first.

    `beside` are weights of an adapter's repository that are not the adapter's.
    """

    choice: WeightFiles
    small: list[str]
    beside: tuple[str, ...] = ()


def needed_of_adapter(names: list[str], repo_id: str, allow_pickle: bool) -> NeededFiles:
    """Return the files of an adapter's repository; raise `RequestError` where it holds no adapter."""
    choice = choose_adapter(names, repo_id, allow_pickle=allow_pickle)
    small = ["adapter_config.json", *tokenizer_files(names)]
    return NeededFiles(choice, small, weights_beside(names))


def tokenizer_files(names: list[str]) -> list[str]:
    """Return the files of a repository's tokenizer; of code all, which its settings may name."""
    return [
        name
        for name in names
        if _is_small(name)
        and (is_tokenizer_file(PurePosixPath(name)) or (name.endswith(".py") and "/" not in name))
    ]


def needed_of_model(names: list[str], repo_id: str, allow_pickle: bool) -> NeededFiles:
    """Return the files of a model's repository; raise `RequestError` where its weights cannot be read."""
    choice = choose_weights(
        [name for name in names if "/" not in name],
        repo_id,
        allow_pickle=allow_pickle,
        subfolders={name.split("/")[0] for name in names if "/" in name and name.endswith(".safetensors")},
    )
    small = [name for name in names if _is_small(name)]
    if choice.name == MLX_ADAPTERS:
        small += {"adapter_config.json"}.intersection(names)  # it has their scale
    return NeededFiles(choice, [*small, choice.name] if choice.index else small)


def _is_small(name: str) -> bool:
    path = PurePosixPath(name)
    known = name.endswith(_SIDE_SUFFIXES) or path.name.lower().startswith(_LICENCES)
    return known and is_side_file(path)
