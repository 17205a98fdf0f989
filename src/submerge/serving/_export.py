"""Each task's subspace as a LoRA adapter for servers that hold many, and a small router beside them.

Task t of a linear map is B A with B = α U_t diag(s_t)^½ and A = diag(s_t)^½ V_t on the base. An adapter has
no place for what is not such a product: updates of embeddings, norms and biases are left out, and told. Heads
of several widths do not fit into one model side by side, so that each lies in a file of its own, and the
adapters are of the base alone. The router's file holds V_t of one layer's maps; a first pass of the base up
to that layer chooses the adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from submerge.engine import is_matrix, stores_transposed, vllm_command
from submerge.errors import Problem, RequestError, few
from submerge.serving._architecture import architectures
from submerge.serving._clip import is_texts
from submerge.serving._folder import Folder, open_folder
from submerge.store import AdapterWriter, Manifest, layer_of, loaded_names, open_checkpoint

__all__ = ["Exported", "export_adapters"]

ROUTER = "router.safetensors"
HEAD = "head.safetensors"
TYPES = {"ForConditionalGeneration": "SEQ_2_SEQ_LM", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
"""PEFT's task types by the ends of transformers' names. Adapters of a base without a head have none."""


@dataclass(frozen=True)
class Exported:
    """The folder that was made, the largest rank, the layer that routes, and what adapters leave out.

    `heads` says that tasks have heads of their own; `serve` is vLLM's command, where it takes the adapters.
    """

    out: Path
    rank: int
    layer: int
    left_out: tuple[str, ...]
    heads: bool
    serve: str | None


def export_adapters(
    folder: str | Path, out: str | Path, *, depth: float = 0.5, overwrite: bool = False
) -> Exported:
    """Write an adapter for each task of a folder, `router.safetensors`, and a script that uses both.

    Args:
        folder: what `submerge merge` wrote by a method that keeps a gate.
        out: the folder to make; `out/TASK` is the adapter of a task, with its head in `head.safetensors`.
        depth: of the layer that routes, in [0, 1).
        overwrite: replace a folder that is not empty.

    Raises `RequestError` where there is nothing that an adapter could hold.
    """
    opened, out = open_folder(Path(folder)), Path(out)
    if out.exists() and any(out.iterdir()) and not (overwrite and (out / ROUTER).exists()):
        hint = "choose another folder" + ("" if overwrite else ", or allow --overwrite")
        raise RequestError(Problem("the output exists and is not empty", str(out), hint))
    part = out.with_name(out.name + ".incomplete")
    if part.exists():
        raise RequestError(Problem("something of this name exists", str(part), "remove it"))
    try:
        made = _write(opened, part, depth)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    folders = {task: out / task for task in opened.names}
    base = open_checkpoint(str(opened.path.resolve()))
    return replace(made, out=out, serve=None if made.heads else vllm_command(folders, base.config))


def _write(opened: Folder, out: Path, depth: float) -> Exported:
    base = open_checkpoint(str(opened.path.resolve()))
    names, place = _named(opened)
    linear = [
        name
        for name in opened.factors
        if name in names and is_matrix(name, base.tensors[name].shape, base.config)
    ]
    if not linear:
        what = "no linear map is changed by a task"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    source, revision = _base_of(opened.path)
    rank, transposed = 0, stores_transposed(base)
    for number, task in enumerate(opened.names):
        with AdapterWriter(out / _plain(task, out)) as writer:
            for name in linear:
                part = opened.factors[name].get(number)
                if part is not None:
                    root = part.values.float().sqrt()
                    left = part.left.float() * (root * opened.settings["scale"])
                    right = root.unsqueeze(1) * part.right.float()
                    writer.add(names[name], left, right, transposed=transposed)
            if not writer.rank:
                raise RequestError(Problem(f"{task} changes no linear map", str(opened.path), "leave it out"))
            rank = max(rank, writer.rank)
            writer.finish(base=source, base_revision=revision, task_type=_task_type(place["architecture"]))
        if opened.heads[number]:
            head = {place["heads"][name]: tensor for name, tensor in opened.heads[number].items()}
            save_file(head, out / task / HEAD)
    told = {
        "base": source,
        "revision": revision,
        "architecture": place["architecture"],
        "part": place["part"],
        "labels": {task["name"]: task["id2label"] for task in opened.tasks if task.get("id2label")},
    }
    layer = _write_router(opened, names, linear, out, depth, transposed, told)
    example = files("submerge.serving").joinpath("_route_template.py").read_text(encoding="utf-8")
    (out / "route.py").write_text(example, encoding="utf-8")
    left_out = sorted({*opened.factors, *opened.dense} - set(linear))
    return Exported(out, rank, layer, tuple(left_out), any(opened.heads), None)


def _named(opened: Folder) -> tuple[dict[str, str], dict[str, Any]]:
    """Return what the base's model calls each tensor of the bank, and how the tasks' model has it.

    That is its `architecture`, the `part` of it that is the base ("": itself), and the `heads`' names in it.
    """
    if any(map(is_texts, opened.heads)):
        what = "heads of class texts are no layer of a model that transformers has"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    (_, base), (kind, whole) = architectures(opened)
    own = loaded_names(base, [*opened.factors, *opened.dense])
    head = [name for head in opened.heads for name in head]
    inside = loaded_names(whole, [*opened.factors, *head])
    if lost := [name for name in head if name not in inside]:
        what = f"{kind} has no place for tensors of the tasks' heads: {few(lost)}"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    for part in ("", whole.base_model_prefix):
        dot = f"{part}." if part else ""
        if part != "" and not hasattr(whole, part):
            continue
        if all(inside[name] == dot + own[name] for name in opened.factors if name in inside and name in own):
            return own, {"architecture": kind, "part": part, "heads": inside}
    return inside, {"architecture": kind, "part": "", "heads": inside}


def _base_of(folder: Path) -> tuple[str, str | None]:
    """Return the base that the folder was merged from, whole paths of folders, and its revision."""
    base = str(Manifest.read(folder).base)
    if Path(base).exists():
        return str(Path(base).resolve()), None
    name, _, revision = base.partition("@")
    return name, revision or None


def _plain(task: str, out: Path) -> str:
    """Return a task's name, which must be one of a folder."""
    if not task.strip(". ") or any(mark in task for mark in '/\\:*?"<>|'):
        what = f"the task's name {task!r} is no folder's"
        raise RequestError(Problem(what, str(out), "give it another 'name:' in the recipe"))
    return task


def _task_type(kind: str) -> str | None:
    return next((found for end, found in TYPES.items() if kind.endswith(end)), None)


def _write_router(
    opened: Folder,
    names: Mapping[str, str],
    linear: list[str],
    out: Path,
    depth: float,
    transposed: bool,
    told: Mapping[str, Any],
) -> int:
    """Write the input subspaces of one layer's maps; return the layer's number."""
    places = {name: place for name in linear if (place := layer_of(name)) is not None}
    if not places:
        raise RequestError(Problem("no layer has a linear map that tasks change", str(opened.path)))
    stack = sorted({stack for stack, _ in places.values()}, key=lambda s: ("decoder" in s, s))[0]
    count = max(index for s, index in places.values() if s == stack) + 1
    layer = min(int(depth * count), count - 1)
    tensors: dict[str, torch.Tensor] = {}
    modules = []
    for name in (n for n, place in places.items() if place == (stack, layer)):
        module = names[name].removesuffix(".weight")
        modules.append(module)
        for number, part in opened.factors[name].items():
            rows = part.left.T if transposed else part.right
            tensors[f"{module}:{number}"] = rows.float().contiguous()
    save_file(tensors, out / ROUTER)
    score = "leading" if opened.low_rank else "residual"
    found = {"tasks": list(opened.names), "layer": layer, "modules": modules, "score": score, **told}
    (out / "router.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return layer
