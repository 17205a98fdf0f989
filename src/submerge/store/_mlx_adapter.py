"""An adapter of MLX-LM as one of ours: `adapters.safetensors` beside its own kind of `adapter_config.json`.

A linear map has `<module>.lora_a` [in, r] and `<module>.lora_b` [r, out], which are PEFT's A and B
transposed, and with DoRA `<module>.m` [out]; an embedding [V, d] has [V, r] and [r, d]. The update is
scale · (lora_a · lora_b)ᵀ, with `lora_parameters: {rank, scale}` of the configuration: the scale is not
divided by the rank. Stacked experts (`switch_mlp`) have lora_a [E, r, in], in earlier versions [E·r, in], and
lora_b [E, out, r].
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.store._checkpoint import Checkpoint
from submerge.store.adapter import ADAPTER_CONFIG, Adapter, LowRankPart, Part
from submerge.store.format import TensorEntry, read_json

__all__ = ["mlx_adapter"]

_A, _B, _MAGNITUDE = ".lora_a", ".lora_b", ".m"
_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings"}
)
_STACKED = re.compile(r"(?P<head>.+)\.switch_mlp\.(?P<leaf>gate_proj|up_proj|down_proj)")
_OF_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_FUSE = "fuse it with mlx_lm.fuse --dequantize, and give that model"


def mlx_adapter(model: Checkpoint) -> Adapter | None:
    """Return the adapter of MLX-LM that a file opened as a checkpoint really is, or None for others.

    Raises `RequestError` where its scale is not known, and for factors of experts that are called otherwise.
    """
    modules = [name.removesuffix(_A) for name in model.tensors if name.endswith(_A)]
    if not modules or not all(f"{module}{_B}" in model.tensors for module in modules):
        return None
    folder = model.path if model.path.is_dir() else model.path.parent
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        what = f"holds factors of MLX-LM ({modules[0]}{_A}), and no {ADAPTER_CONFIG} says their scale"
        raise RequestError(Problem(what, str(model.path), "give the folder that MLX-LM wrote"))
    raw = read_json(path)
    problems: list[Problem] = []
    scale = _scale(raw, str(path), problems)
    parts = _parts(modules, model.tensors, scale, str(model.path), problems)
    if problems:
        raise RequestError(problems)
    base = raw.get("model")
    return Adapter(
        label=model.label,
        path=model.path,
        revision=model.revision,
        config={},
        base=base if isinstance(base, str) and base else None,
        base_revision=None,
        parts=dict(sorted(parts.items())),
        notes=(f"in the form of MLX-LM, scale {scale:g}",),
        files=tuple(model.files),
        memory=model.memory,
        pending=model.pending,
        form="mlx",
    )


def _scale(raw: Mapping[str, Any], where: str, problems: list[Problem]) -> float:
    """Return the factor on an update; a configuration that does not say it is a problem."""
    given = raw.get("lora_parameters")
    given = given if isinstance(given, Mapping) else {}
    scale = given.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        problems.append(Problem(f"lora_parameters says no scale, but {scale!r}", where, _FUSE))
        return 1.0
    if given.get("alpha") is not None:
        what = "lora_parameters has scale and alpha, which versions of MLX-LM read in two ways"
        hint = (
            "leave alpha out and write as scale what was trained with: scale · alpha / rank in early versions"
        )
        problems.append(Problem(what, where, f"{hint}, scale in later ones"))
    return float(scale)


def _parts(
    modules: list[str],
    tensors: Mapping[str, TensorEntry],
    scale: float,
    where: str,
    problems: list[Problem],
) -> dict[str, Part]:
    """Return the updates by parameter; tensors that are none, and factors of other shapes, are problems."""
    parts: dict[str, Part] = {}
    used: set[str] = set()
    for module in modules:
        keys = [f"{module}{end}" for end in (_A, _B)]
        right, left = (tensors[key] for key in keys)
        magnitude = tensors.get(f"{module}{_MAGNITUDE}")
        used.update([*keys, f"{module}{_MAGNITUDE}"])
        is_embedding = module.rpartition(".")[2] in _EMBEDDINGS
        stacked = _STACKED.fullmatch(module)
        if stacked and magnitude is None and _is_stack(left, right):
            parts |= _experts(stacked, left, right, scale)
            continue
        fault = _fault(left, right, magnitude, is_embedding)
        if fault:
            problems.append(Problem(f"the adapter of {module} {fault}", where, _FUSE))
        parts[f"{module}.weight"] = LowRankPart(
            left_entry=left,
            right_entry=right,
            scale=scale,
            transposed=is_embedding,
            magnitude=magnitude,
            kind="embedding" if is_embedding else "linear",
            swapped=True,
        )
    if others := [name for name in tensors if name not in used]:
        problems.append(Problem(f"holds tensors beside factors ({few(others)})", where, _FUSE))
    return parts


def _is_stack(left: TensorEntry, right: TensorEntry) -> bool:
    """Return whether factors are of stacked experts: B [E, out, r], and A with E · r rows."""
    if len(left.shape) != 3 or 0 in left.shape or left.file is None or right.file is None:
        return False
    experts, _, rank = left.shape
    return right.shape[:-1] in ((experts, rank), (experts * rank,))


def _experts(
    stacked: re.Match[str], left: TensorEntry, right: TensorEntry, scale: float
) -> Iterator[tuple[str, Part]]:
    """Yield the update of each expert, by the name that it has where experts lie apart."""
    leaf = stacked["leaf"]
    leaf = _OF_MIXTRAL[leaf] if stacked["head"].endswith("block_sparse_moe") else leaf
    experts, _, rank = left.shape
    for number in range(experts):
        b, a = _slice(left, number, left.shape[1:]), _slice(right, number, (rank, right.shape[-1]))
        yield f"{stacked['head']}.experts.{number}.{leaf}.weight", LowRankPart(b, a, scale)


def _slice(entry: TensorEntry, number: int, shape: tuple[int, ...]) -> TensorEntry:
    """Return one of the equal parts of a tensor, which lie one after the other."""
    nbytes = entry.nbytes * math.prod(shape) // entry.numel
    offset = entry.offset + number * nbytes
    return replace(entry, name=f"{entry.name}[{number}]", shape=shape, offset=offset, nbytes=nbytes)


def _fault(
    left: TensorEntry, right: TensorEntry, magnitude: TensorEntry | None, is_embedding: bool
) -> str | None:
    shapes = f"lora_a {list(right.shape)} and lora_b {list(left.shape)}"
    if len(left.shape) == len(right.shape) == 3:
        return f"has factors for each of packed experts, {shapes}"
    if len(left.shape) != 2 or len(right.shape) != 2 or right.shape[1] != left.shape[0]:
        return f"has factors that do not fit each other, {shapes}"
    if magnitude is not None and (is_embedding or magnitude.shape != left.shape[1:]):
        return f"has a magnitude of the shape {list(magnitude.shape)} beside {shapes}"
    return None
