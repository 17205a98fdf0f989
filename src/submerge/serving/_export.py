"""Each task's subspace as a LoRA adapter for servers that hold many, and a small router beside them.

Task t of a linear map is B A with B = α U_t diag(s_t)^½ and A = diag(s_t)^½ V_t on the base. An adapter has
no place for what is not such a product: updates of embeddings, norms and biases are left out and named. Heads
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

from safetensors.torch import save_file

from submerge.engine import is_matrix, stores_transposed, vllm_command
from submerge.engine.output import give_name, unfinished_folder, why_taken
from submerge.errors import Problem, RequestError, few
from submerge.names import layer_of, loaded_names
from submerge.serving._architecture import architectures
from submerge.serving._clip import is_texts
from submerge.serving._folder import Folder, gate_manifest, open_folder
from submerge.store import MODALITY_GATE, PROJECTOR_GATE, AdapterWriter, Manifest, open_checkpoint
from submerge.store.adapter import task_type_of

__all__ = ["Exported", "export_adapters"]

ROUTER = "router.safetensors"
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Exported:
    """The folder that was made, the largest rank, the layer that routes, and what adapters leave out.

    `heads` says that tasks have heads of their own; `serve` is vLLM's command, where it takes the adapters.

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from submerge.serving import export_adapters
        >>> exported = export_adapters("served", "adapters")
        >>> exported.heads, exported.rank > 0
        (False, True)
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

    Examples:
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> from submerge.serving import export_adapters
        >>> exported = export_adapters("served", "adapters")
        >>> sorted(path.name for path in exported.out.iterdir())
        ['chat', 'code', 'route.py', 'router.json', 'router.safetensors']
    """
    _check_tasks(Path(folder))
    opened, out = open_folder(Path(folder)), Path(out)
    if problems := why_taken(out, overwrite=overwrite, replaceable=("export", ROUTER.__eq__)):
        raise RequestError(problems)
    unfinished = unfinished_folder(out)
    if unfinished.exists():
        raise RequestError(Problem("something of this name exists", str(unfinished), "remove it"))
    try:
        exported = _export(opened, unfinished, depth)
        give_name(unfinished, out.resolve(), overwrite=overwrite)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    folders = {task: out / task for task in opened.names}
    config = open_checkpoint(str(opened.path.resolve())).config
    return replace(exported, out=out, serve=None if exported.heads else vllm_command(folders, config))


def _check_tasks(folder: Path) -> None:
    """Raise `RequestError` where tasks have no updates: a server has one adapter for all of a request."""
    _, gate = gate_manifest(folder)
    without = {
        MODALITY_GATE: "a composed model has updates of tokens, and no tasks",
        PROJECTOR_GATE: "the tasks have projectors of their own, which are no adapters",
    }
    if what := without.get(gate.method):
        raise RequestError(Problem(what, str(folder), "use it with submerge.load"))


def _export(opened: Folder, out: Path, depth: float) -> Exported:
    """Write the folder, and return all but its final place and vLLM's command."""
    parts = _parts(opened)
    rank = max(_write_adapter(parts, number, out) for number in range(len(opened.names)))
    layer = _write_router(parts, depth, out)
    script = files("submerge.serving").joinpath("_route_template.py").read_text(encoding="utf-8")
    (out / "route.py").write_text(script, encoding="utf-8")
    left_out = sorted({*opened.factors, *opened.dense} - set(parts.linear))
    return Exported(out, rank, layer, tuple(left_out), any(opened.heads), None)


@dataclass(frozen=True)
class _Parts:
    """What the files of an export are made of.

    `linear` are the linear maps that tasks change, by what the base's model calls them, and `transposed` says
    that the base stores them as [in, out]. The tasks' models are of `architecture`, their part `part` is the
    base ("": all of it), and `heads` is what the tensors of the heads are called in them.
    """

    folder: Folder
    linear: Mapping[str, str]
    transposed: bool
    base: str
    revision: str | None
    architecture: str
    task_type: str | None
    part: str
    heads: Mapping[str, str]


def _parts(opened: Folder) -> _Parts:
    base = open_checkpoint(str(opened.path.resolve()))
    names, architecture, part, heads = _named(opened)
    linear = {
        name: names[name]
        for name in opened.factors
        if name in names and is_matrix(name, base.tensors[name].shape, base.config)
    }
    if not linear:
        what = "no linear map is changed by a task"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    source, revision = _base_of(opened.path)
    return _Parts(
        opened,
        linear,
        stores_transposed(base),
        source,
        revision,
        architecture,
        task_type_of(architecture, base.config),
        part,
        heads,
    )


def _named(opened: Folder) -> tuple[dict[str, str], str, str, dict[str, str]]:
    """Return what the base's model calls each tensor of the bank, and how the tasks' model has it.

    That is its architecture, the part of it that is the base ("": itself), and the heads' names in it.
    """
    if any(map(is_texts, opened.heads)):
        what = "heads of class texts are no layer of a model that transformers has"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    (_, base), (kind, tasks_model) = architectures(opened)
    own = loaded_names(base, [*opened.factors, *opened.dense])
    head = [name for head in opened.heads for name in head]
    inside = loaded_names(tasks_model, [*opened.factors, *head])
    if lost := [name for name in head if name not in inside]:
        what = f"{kind} has no place for tensors of the tasks' heads: {few(lost)}"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    for part in ("", tasks_model.base_model_prefix):
        dot = f"{part}." if part else ""
        if part != "" and not hasattr(tasks_model, part):
            continue
        if all(inside[name] == dot + own[name] for name in opened.factors if name in inside and name in own):
            return own, kind, part, inside
    return inside, kind, "", inside


def _base_of(folder: Path) -> tuple[str, str | None]:
    """Return the base that the folder was merged from, complete paths of folders, and its revision."""
    base = str(Manifest.read(folder).base)
    if Path(base).exists():
        return str(Path(base).resolve()), None
    name, _, revision = base.partition("@")
    return name, revision or None


def _write_adapter(parts: _Parts, number: int, out: Path) -> int:
    """Write the adapter of a task, with its head beside it; return the adapter's rank."""
    opened, task = parts.folder, parts.folder.names[number]
    with AdapterWriter(out / _folder_name(task, out)) as writer:
        for name, module in parts.linear.items():
            update = opened.factors[name].get(number)
            if update is not None:
                root = update.values.float().sqrt()
                left = update.left.float() * (root * opened.settings["scale"])
                right = root.unsqueeze(1) * update.right.float()
                writer.add(module, left, right, transposed=parts.transposed)
        if not writer.rank:
            raise RequestError(Problem(f"{task} changes no linear map", str(opened.path), "leave it out"))
        writer.finish(base=parts.base, base_revision=parts.revision, task_type=parts.task_type)
    if head := opened.heads[number]:
        save_file({parts.heads[name]: tensor for name, tensor in head.items()}, out / task / HEAD)
    return writer.rank


def _folder_name(task: str, out: Path) -> str:
    """Return a task's name, which must be one of a folder."""
    if not task.strip(". ") or any(mark in task for mark in '/\\:*?"<>|'):
        what = f"the task's name {task!r} is no folder's"
        raise RequestError(Problem(what, str(out), "give it another 'name:' in the recipe"))
    return task


def _write_router(parts: _Parts, depth: float, out: Path) -> int:
    """Write the input subspaces of one layer's maps, and what the script must know; return the layer."""
    opened = parts.folder
    layer, names = _routing_layer(parts, depth)
    modules = [parts.linear[name].removesuffix(".weight") for name in names]
    tensors = {
        f"{module}:{number}": (update.left.T if parts.transposed else update.right).float().contiguous()
        for name, module in zip(names, modules, strict=True)
        for number, update in opened.factors[name].items()
    }
    save_file(tensors, out / ROUTER)
    settings = {
        "tasks": list(opened.names),
        "layer": layer,
        "modules": modules,
        "score": _score(opened),
        "base": parts.base,
        "revision": parts.revision,
        "architecture": parts.architecture,
        "part": parts.part,
        "labels": {task["name"]: task["id2label"] for task in opened.tasks if task.get("id2label")},
    }
    (out / "router.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return layer


def _score(opened: Folder) -> str:
    """Return the score of the script: the null-space ratio where it was chosen, else the default."""
    if opened.settings.get("score") == "null_space":
        return "null_space"
    return "leading" if opened.low_rank else "residual"


def _routing_layer(parts: _Parts, depth: float) -> tuple[int, list[str]]:
    """Return the layer at `depth` of the first stack, an encoder before a decoder, and its maps."""
    places = {name: place for name in parts.linear if (place := layer_of(name)) is not None}
    if not places:
        what = "no layer has a linear map that tasks change"
        raise RequestError(Problem(what, str(parts.folder.path)))
    stack = sorted({stack for stack, _ in places.values()}, key=lambda s: ("decoder" in s, s))[0]
    count = max(index for s, index in places.values() if s == stack) + 1
    layer = min(int(depth * count), count - 1)
    return layer, [name for name, place in places.items() if place == (stack, layer)]
