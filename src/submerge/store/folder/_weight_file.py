"""Which file of a folder or repository holds the weights, decided from the names alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from submerge.errors import Problem, RequestError, few
from submerge.store.format import NPZ_HINT

__all__ = [
    "MLX_ADAPTERS",
    "PICKLE_SUFFIXES",
    "WEIGHT_SUFFIXES",
    "HoldsAdapterError",
    "WeightFiles",
    "choose_adapter",
    "choose_weights",
    "is_training_state",
    "pickle_refusal",
    "weights_beside",
]

MLX_ADAPTERS = "adapters.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = (
    ".safetensors",
    *PICKLE_SUFFIXES,
    ".pkl",
    ".pickle",
    ".joblib",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".mlmodel",
    ".nemo",
    ".npz",
)
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "pytorch_lora_weights", "open_clip_model")
_INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[^.]+)?\.json$")
_PIECE = re.compile(r"-\d{5}-of-(\d{5})\.")
_TRAINING = re.compile(
    r"^(training_args\.|optimizer|scheduler|rng_state|random_states|scaler\.|trainer_state\.json|"
    r"zero_to_fp32\.py$|latest$|zero_pp_rank|mp_rank|events\.out\.tfevents)"
)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The file to open: its name, whether it is an index of others, and whether it is pickled."""

    name: str
    index: bool = False
    pickled: bool = False


def is_training_state(name: str) -> bool:
    """Return True for files that only a training run needs: optimiser, scheduler, random states, logs."""
    return _TRAINING.match(name) is not None


class HoldsAdapterError(RequestError):
    """A folder or repository holds an adapter, and a model was asked for."""


def choose_weights(
    names: Collection[str], where: str, *, allow_pickle: bool = False, subfolders: Collection[str] = ()
) -> WeightFiles:
    """Return which of the root's file names to open; raise `RequestError` that says why none can be.

    The order is that of transformers: `model.safetensors`, its index, then any single safetensors file
    (variants such as `model.fp16.safetensors`), then pickled weights if allowed. `subfolders` are those
    that hold weights, for the message.
    """
    visible = sorted(name for name in names if not name.startswith("."))
    usable = [name for name in visible if not is_training_state(name) and not name.startswith("adapter_")]
    if _is_adapter(visible):  # other files are what lies beside its weights
        usable = [name for name in usable if name.startswith(_STEMS)]
    chosen = _safetensors(usable, where) or _pickled(usable, where)
    if chosen is None and any(name.startswith("adapter_") for name in visible):
        hint = "name it as `model+adapter`, or alone beside a base_model"
        raise HoldsAdapterError(Problem("holds an adapter where a whole model is expected", where, hint))
    if chosen is None:
        raise RequestError(_nothing(visible, where, subfolders))
    if chosen.pickled and not allow_pickle:
        raise RequestError(pickle_refusal(f"{where}: {chosen.name}"))
    return chosen


def choose_adapter(names: Collection[str], where: str, *, allow_pickle: bool = False) -> WeightFiles:
    """Return which file holds an adapter's weights; raise `RequestError` that says why none does.

    `names` are the paths of the files, `<subfolder>/adapter_config.json` among them for the message.
    """
    inner = sorted(name.rpartition("/")[0] for name in names if name.endswith("/adapter_config.json"))
    if "adapter_config.json" not in names:
        if inner:
            what = f"holds no adapter itself, but its subfolders do ({few(inner, 6)})"
            hint = "download the repository, and name one of the subfolders"
            raise RequestError(Problem(what, where, hint))
        what = "holds no adapter: adapter_config.json is missing"
        raise RequestError(Problem(what, where, "name the folder in which PEFT saved the adapter"))
    if "adapter_model.safetensors" in names:
        return WeightFiles("adapter_model.safetensors")
    if "adapter_model.bin" in names:
        if not allow_pickle:
            raise RequestError(pickle_refusal(f"{where}: adapter_model.bin"))
        return WeightFiles("adapter_model.bin", pickled=True)
    what = "holds an adapter_config.json, but no adapter_model.safetensors"
    if archives := sorted(name for name in names if name.endswith(".npz")):
        raise RequestError(Problem(f"{what}: {few(archives)} is an archive of NumPy arrays", where, NPZ_HINT))
    if other := weights_beside(names):
        what = f"{what}: {few(other)} is of another program than PEFT"
        raise RequestError(Problem(what, where, "convert the adapter to PEFT's form with that program"))
    raise RequestError(Problem(what, where, "copy or download the missing file"))


def weights_beside(names: Collection[str]) -> tuple[str, ...]:
    """Return the weight files at the root of an adapter's folder that are not the adapter's own."""
    return tuple(
        sorted(
            name
            for name in names
            if name.endswith(WEIGHT_SUFFIXES)
            and "/" not in name
            and not name.startswith((".", "adapter_model."))
            and not is_training_state(name)
        )
    )


def pickle_refusal(where: str) -> Problem:
    """Return the problem of weights in a pickle while pickles are not allowed."""
    return Problem(
        "the weights are pickled, and a pickle can run any code when it is opened",
        where,
        "if you trust it, merge, plan and inspect take it with --allow-pickle; or convert it once, which all "
        "commands take: load the model with Transformers or PEFT and save_pretrained() it as safetensors",
    )


def _is_adapter(names: Collection[str]) -> bool:
    return "adapter_config.json" in names and any(name.startswith("adapter_model.") for name in names)


def _safetensors(names: list[str], where: str) -> WeightFiles | None:
    standard = _standard(names, ".safetensors", pickled=False)
    if standard is None and MLX_ADAPTERS in names:  # those of earlier steps lie beside them
        return WeightFiles(MLX_ADAPTERS)
    return standard or _single(
        [name for name in names if name.endswith(".safetensors") and name != "bank.safetensors"],
        [name for name in names if (index := _INDEX.search(name)) and index[1] == "safetensors"],
        where,
        pickled=False,
    )


def _pickled(names: list[str], where: str) -> WeightFiles | None:
    return _standard(names, ".bin", pickled=True) or _single(
        [name for name in names if name.endswith(PICKLE_SUFFIXES)],
        [name for name in names if (index := _INDEX.search(name)) and index[1] == "bin"],
        where,
        pickled=True,
    )


def _standard(names: list[str], suffix: str, *, pickled: bool) -> WeightFiles | None:
    for stem in _STEMS:
        if stem + suffix in names:
            return WeightFiles(stem + suffix, pickled=pickled)
        if f"{stem}{suffix}.index.json" in names:
            return WeightFiles(f"{stem}{suffix}.index.json", index=True, pickled=pickled)
    return None


def _single(files: list[str], indices: list[str], where: str, *, pickled: bool) -> WeightFiles | None:
    """Return the one index or the one file of a non-standard name; several are an error."""
    # the vendor's own layout of the same weights; it counts only when there is nothing else
    files = [name for name in files if not name.startswith("consolidated")] or files
    if len(indices) == 1:
        return WeightFiles(indices[0], index=True, pickled=pickled)
    candidates = indices or files
    if not candidates:
        return None
    piece = _PIECE.search(candidates[0])
    if piece and int(piece[1]) > 1:
        what = f"holds pieces of a sharded checkpoint ({few(candidates)}) but not their index"
        raise RequestError(Problem(what, where, "add the file model.safetensors.index.json"))
    if len(candidates) == 1:
        return WeightFiles(candidates[0], pickled=pickled)
    what = f"holds several weight files of no standard name ({few(candidates, 5)})"
    hint = (
        "name the one that you mean, or keep only that one"
        if not pickled
        else "keep only the one that you mean"
    )
    raise RequestError(Problem(what, where, hint))


def _nothing(names: list[str], where: str, subfolders: Collection[str]) -> Problem:
    """Return the problem of a folder without usable weights, by what it holds instead."""
    for suffixes, kind in (
        ((".gguf", ".ggml"), "GGUF"),
        ((".h5", ".msgpack", ".h5.index.json", ".msgpack.index.json"), "TensorFlow or Flax"),
        ((".onnx", ".onnx_data"), "ONNX"),
        ((".npz",), "NumPy"),
    ):
        of_kind = [name for name in names if name.endswith(suffixes)]
        if of_kind:
            what = f"holds only {kind} weights ({few(of_kind)})"
            hint = "Submerge reads safetensors: give the original checkpoint"
            return Problem(what, where, NPZ_HINT if kind == "NumPy" else hint)
    if subfolders:
        what = f"holds no weights itself, but its subfolders do ({few(sorted(subfolders), 6)})"
        return Problem(what, where, "name one of the subfolders")
    listing = f"it holds {few(names, 8)}" if names else "it is empty"
    return Problem(f"no weights found; {listing}", where, "give a folder with model.safetensors")
