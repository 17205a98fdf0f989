"""The files of a model folder besides its weights: which are copied into the output, and which are not."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from submerge.errors import Problem
from submerge.store.folder._weight_file import WEIGHT_SUFFIXES, is_training_state

__all__ = ["SideFiles", "is_side_file", "is_side_folder", "left_out", "side_files"]

_INDEX = re.compile(r"\.(safetensors|bin|h5|msgpack)\.index(\.[^.]+)?\.json$")
# what another run says about itself would be false of the output; an adapter_config.json would even
# make Transformers look for an adapter there
_NOT_COPIED = {
    "submerge.json", "coefficients.json", "mergekit_config.yml", "mergekit_moe_config.yml",
    "adapter_config.json",
}  # fmt: skip
# of formats of weights, and none of the model: voices of Qwen2.5-Omni, filters of Qwen-Audio and others
_NO_WEIGHTS = {"spk_dict.pt", "mel_filters.npz"}
_COPIES = re.compile(
    r"((pytorch|diffusion_pytorch|flax|tf|rust)_)?model\b.*|pytorch_model_fsdp.*|weights\..*|consolidated\b.*|ggml.*"
    r"|adapter_model\b.*|bank\.safetensors"
)
_EXPORTS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".mlmodel", ".nemo")
_NOT_AT_ROOT = {"README.md"}  # a new card is written
# copies of the model in other formats, and what training leaves behind
_NOT_ENTERED = {"onnx", "openvino", "coreml", "original", "runs", "wandb", "logs", "__pycache__"}
_NOT_ENTERED_RE = re.compile(r"^(checkpoint-\d+|global_step\d+)$")


def is_side_folder(name: str) -> bool:
    """Return True for subfolders whose files may be copied, such as `1_Pooling`."""
    return not name.startswith(".") and name not in _NOT_ENTERED and not _NOT_ENTERED_RE.match(name)


def is_side_file(path: PurePath) -> bool:
    """Return True if a file, by its path inside the model folder, belongs beside the merged weights."""
    name = path.name
    return (
        all(is_side_folder(part) for part in path.parts[:-1])
        and not name.startswith(".")
        and (not name.endswith(WEIGHT_SUFFIXES) or name in _NO_WEIGHTS)
        and not _INDEX.search(name)
        and not is_training_state(name)
        and name not in _NOT_COPIED
        and not (len(path.parts) == 1 and name in _NOT_AT_ROOT)
    )


def left_out(folder: Path, read: Collection[Path]) -> tuple[Path, ...]:
    """Return files of weights that are neither read nor copied, and by their names no copy of the model.

    Another reader of the model may need them: a projector, a head, voices. `read` are the files that the
    merge reads.
    """
    home, found = folder.resolve(), []
    for place, folders, files in os.walk(home):
        folders[:] = sorted(name for name in folders if is_side_folder(name))
        inside, at_root = Path(place).relative_to(home), Path(place) == home
        has_weights = at_root or any(name.endswith(".safetensors") for name in files)
        for name in sorted(files):
            is_copy = (has_weights and _COPIES.fullmatch(name)) or name.endswith(_EXPORTS)
            is_none = name in _NO_WEIGHTS or is_training_state(name) or not name.endswith(WEIGHT_SUFFIXES)
            is_copied = not at_root and name.endswith(".safetensors")
            is_known = is_copy or is_none or is_copied or name.startswith(".")
            if not is_known and folder / inside / name not in read:
                found.append(inside / name)
    return tuple(sorted(found))


@dataclass(frozen=True)
class SideFiles:
    """Files to copy and weight files in subfolders, relative to the folder and sorted.

    `links` says, by path, why a link must not be followed: one that leads out of the folder would bring a
    private file into a folder that may be published.
    """

    copied: tuple[Path, ...]
    weights: tuple[Path, ...]
    links: Mapping[Path, Problem]


def side_files(folder: Path) -> SideFiles:
    """Return the files of a folder beside its weights.

    Links are followed only to files inside the folder, or into the blobs of a Hub cache.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and (home.parent.parent / "blobs").is_dir():
        allowed.append(home.parent.parent / "blobs")
    copied: list[Path] = []
    weights: list[Path] = []
    links: dict[Path, Problem] = {}
    for place, folders, files in os.walk(home):
        folders[:] = sorted(name for name in folders if is_side_folder(name))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in [*sorted(files), *linked]:
            path = Path(place) / name
            relative = path.relative_to(home)
            is_weight = (
                name.endswith(".safetensors") and len(relative.parts) > 1 and not is_training_state(name)
            )
            if not is_weight and not is_side_file(relative):
                continue
            problem = _link_problem(path, allowed) if path.is_symlink() else None
            if problem is not None:
                links[relative] = problem
            elif path.is_file():  # neither pipes and sockets, nor linked folders, which are walked in place
                (weights if is_weight else copied).append(relative)
    return SideFiles(tuple(sorted(copied)), tuple(sorted(weights)), links)


def _link_problem(path: Path, allowed: list[Path]) -> Problem | None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return Problem(
            "is a link that leads nowhere", str(path), "download the file again, or remove the link"
        )
    if any(target.is_relative_to(home) for home in allowed):
        return None
    hint = "put the file itself into the folder, or remove the link"
    return Problem(f"is a link to {target}, outside the model's folder", str(path), hint)
