"""Each task's subspace as a LoRA adapter for servers that hold many, and the folder's router beside them.

Task t of a linear map is B A with B = α U_t diag(s_t)^½ and A = diag(s_t)^½ V_t on the base. An adapter has
no place for what is not such a product: updates of embeddings, norms and biases are left out and named. Heads
of several widths do not fit into one model side by side, so that each lies in a file of its own, and the
adapters are of the base alone. The router's file holds V_t of the maps that are looked at; a first pass of
the base chooses the adapter. The script that does so has the router's own definitions written out, so that it
decides as the served model does. What it cannot do with one adapter at a time on the base is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from submerge._version import __version__
from submerge.algebra import Bank, LowRank, Triplets
from submerge.engine import is_matrix, stores_transposed, vllm_command
from submerge.engine.output import give_name, unfinished_folder, why_taken
from submerge.errors import Problem, RequestError, few
from submerge.gating import is_linear_map, is_transposed
from submerge.methods.mass import RoutingSettings
from submerge.names import layer_of, loaded_names
from submerge.serving._architecture import architectures
from submerge.serving._attach import is_unordered
from submerge.serving._calibration_file import calibration_path
from submerge.serving._clip import is_texts
from submerge.serving._folder import Folder, gate_manifest, open_folder
from submerge.serving._heads import own_modules
from submerge.serving._inlined import inlined
from submerge.serving._mass import calibrated, rules_arguments
from submerge.serving._settings import with_settings
from submerge.store import MODALITY_GATE, PROJECTOR_GATE, AdapterWriter, Manifest, open_checkpoint
from submerge.store.adapter import task_type_of

__all__ = ["Exported", "export_adapters"]

ROUTER = "router.safetensors"
CALIBRATION = "calibration.safetensors"
HEAD = "head.safetensors"
DEFINITIONS = (
    f"# How the router of Submerge {__version__} decides, as the served model has it (Apache-2.0).\n"
    "# What uses the adapters follows at the end of the file: AdapterRouter, Tasks and Answers."
)


@dataclass(frozen=True)
class Exported:
    """The folder that was made, the largest rank, the layers that route, and what adapters leave out.

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
    layers: str
    left_out: tuple[str, ...]
    heads: bool
    serve: str | None


def export_adapters(
    folder: str | Path,
    out: str | Path,
    *,
    depth: float | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Exported:
    """Write an adapter for each task of a folder, and a script with the folder's router that uses them.

    The script decides as `submerge.load(folder, **settings)` does, for inputs of one task at a time. What the
    folder knows by a calibration, it knows, too; the level of noise, where scores count from it, it finds
    itself at its first inputs.

    Args:
        folder: what `submerge merge` wrote by a method that keeps a gate.
        out: the folder to make; `out/TASK` is the adapter of a task, with its head in `head.safetensors`.
        depth: in [0, 1): `routing_layers="depth:…"`, one layer alone, which is cheaper and finds fewer tasks.
        overwrite: replace a folder that is not empty.
        **settings: options of the gate, in the place of the recipe's, as `load` takes them.

    Raises:
        RequestError: there is nothing that an adapter could hold, or the settings ask for what adapters of
            the base cannot do: a first pass of the merge, or several tasks at once.

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
    if depth is not None:
        if "routing_layers" in settings:
            raise RequestError(
                Problem("both depth and routing_layers are given", "export", "keep one of them")
            )
        settings = {**settings, "routing_layers": f"depth:{depth}"}
    opened, out = with_settings(open_folder(Path(folder)), settings, "export"), Path(out)
    _check_settings(opened)
    if problems := why_taken(out, overwrite=overwrite, replaceable=("export", ROUTER.__eq__)):
        raise RequestError(problems)
    unfinished = unfinished_folder(out)
    if unfinished.exists():
        raise RequestError(Problem("something of this name exists", str(unfinished), "remove it"))
    try:
        exported = _export(opened, unfinished)
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


def _check_settings(opened: Folder) -> None:
    """Raise `RequestError` for settings of which a script with adapters on the base can do nothing."""
    merged = "the first pass is the merge's, and adapters lie on the base"
    several = "several tasks may run at once, and of adapters one does"
    refused = (
        ("passes", ("one",), merged, "two"),
        ("first_pass", ("merged",), merged, "base"),
        ("select", ("threshold", "weighted"), several, "top1"),
    )
    problems = [
        Problem(
            f"{name} is {opened.settings[name]}: {what}",
            str(opened.path),
            f'export it with {name}="{instead}" (--set {name}={instead}), which may find other tasks',
        )
        for name, words, what, instead in refused
        if opened.settings[name] in words
    ]
    if problems:
        raise RequestError(problems)


def _export(opened: Folder, out: Path) -> Exported:
    """Write the folder, and return all but its final place and vLLM's command."""
    parts = _parts(opened)
    rank = max(_write_adapter(parts, number, out) for number in range(len(opened.names)))
    _write_router(parts, out)
    script = inlined("submerge.serving._route_template", DEFINITIONS)
    (out / "route.py").write_text(script, encoding="utf-8")
    left_out = sorted({*opened.factors, *opened.dense} - set(parts.linear))
    return Exported(out, rank, parts.rules.layers.text, tuple(left_out), any(opened.heads), None)


@dataclass(frozen=True)
class _Models:
    """The models of an export, without values, and what they call the bank's tensors.

    `names` are those in `base`. The tasks' model is of `architecture`, its part `part` is the base ("": all
    of it), and `heads` is what the tensors of the heads are called in it.
    """

    base: Any
    names: Mapping[str, str]
    tasks: Any
    architecture: str
    part: str
    heads: Mapping[str, str]


@dataclass(frozen=True)
class _Parts:
    """What the files of an export are made of.

    `linear` are the linear maps that tasks change, by what the base's model calls them, and `transposed` says
    that the base stores them as [in, out]. `rules` are those of the router, and `known` those of a model that
    the gate's settings do not tell.
    """

    folder: Folder
    models: _Models
    linear: Mapping[str, str]
    transposed: bool
    base: str
    revision: str | None
    task_type: str | None
    rules: RoutingSettings
    known: Mapping[str, bool]


def _parts(opened: Folder) -> _Parts:
    base = open_checkpoint(str(opened.path.resolve()))
    models = _models(opened)
    linear = {
        name: models.names[name]
        for name in opened.factors
        if name in models.names and is_matrix(name, base.tensors[name].shape, base.config)
    }
    if not linear:
        what = "no linear map is changed by a task"
        raise RequestError(Problem(what, str(opened.path), "use submerge.load"))
    source, revision = _base_of(opened.path)
    known = rules_arguments(models.tasks, opened)
    rules = RoutingSettings.from_mapping(opened.settings, **known)
    return _Parts(
        opened,
        models,
        linear,
        stores_transposed(base),
        source,
        revision,
        task_type_of(models.architecture, base.config),
        rules,
        known,
    )


def _models(opened: Folder) -> _Models:
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
            return _Models(base, own, tasks_model, kind, part, inside)
    return _Models(tasks_model, inside, tasks_model, kind, "", inside)


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
                left, right = _alone(update, opened.settings["aggregate"], opened.settings["scale"])
                writer.add(module, left, right, transposed=parts.transposed)
        if not writer.rank:
            raise RequestError(Problem(f"{task} changes no linear map", str(opened.path), "leave it out"))
        writer.finish(base=parts.base, base_revision=parts.revision, task_type=parts.task_type)
    if head := opened.heads[number]:
        save_file({parts.models.heads[name]: tensor for name, tensor in head.items()}, out / task / HEAD)
    return writer.rank


def _alone(update: Triplets, rule: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors [m, r] and [r, n] of an update as the served model runs it by itself."""
    if not Bank.is_diagonal((0,), rule):  # iso_c: its values are one
        merged = Bank((update.left.shape[0], update.right.shape[1]), {0: update}).merged((0,), rule, scale)
        assert isinstance(merged, LowRank)
        return merged.left, merged.right
    root = update.values.float().sqrt()
    return update.left.float() * (root * scale), root.unsqueeze(1) * update.right.float()


def _folder_name(task: str, out: Path) -> str:
    """Return a task's name, which must be one of a folder."""
    if not task.strip(". ") or any(mark in task for mark in '/\\:*?"<>|'):
        what = f"the task's name {task!r} is no folder's"
        raise RequestError(Problem(what, str(out), "give it another 'name:' in the recipe"))
    return task


def _write_router(parts: _Parts, out: Path) -> None:
    """Write what the inputs of maps are read by, what is known by inputs, and what the script must know."""
    opened, models = parts.folder, parts.models
    _, *known = calibrated(opened, parts.rules)
    looked_at = _looked_at(parts)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in looked_at.items():
        transposed = is_transposed(models.base.get_submodule(module))
        for number, update in opened.factors[name].items():
            tensors[f"{module}:{number}"] = (update.left.T if transposed else update.right).contiguous()
            tensors[f"{module}:{number}:values"] = update.values
    save_file(tensors, out / ROUTER)
    if known != [None, None]:
        shutil.copyfile(calibration_path(opened), out / CALIBRATION)
    settings = {
        "tasks": list(opened.names),
        "modules": list(looked_at.values()),
        "gate": dict(opened.settings),
        "model": dict(parts.known),
        "base": parts.base,
        "revision": parts.revision,
        "architecture": models.architecture,
        "part": models.part,
        "head": _head(parts),
        "labels": {task["name"]: task["id2label"] for task in opened.tasks if task.get("id2label")},
    }
    (out / "router.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _looked_at(parts: _Parts) -> dict[str, str]:
    """Return the maps that the router may look at, by the tensors' names, in the layers that it looks at."""
    model = parts.models.base
    part = model.base_model.get_encoder() if _has_encoder(model) else model.base_model
    inside = set(map(id, part.modules()))
    layers: dict[tuple[str, int], dict[str, str]] = {}
    for name, parameter in parts.linear.items():
        path = parameter.removesuffix(".weight")
        module, place = model.get_submodule(path), layer_of(path)
        if place and id(module) in inside and is_linear_map(module) and not is_unordered(model, path):
            layers.setdefault(place, {})[name] = path
    found: dict[str, str] = {}
    for (stack, layer), maps in layers.items():
        count = len(list(model.get_submodule(stack).children()))
        if parts.rules.layers.accepts(stack, layer, count, list(maps.values())):
            found |= maps
    if not found:
        what = f"no layer that routing_layers {parts.rules.layers.text!r} names has a map that tasks change"
        hint = "take another with routing_layers (--set routing_layers=all), or a --depth"
        raise RequestError(Problem(what, str(parts.folder.path), hint))
    return found


def _has_encoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _head(parts: _Parts) -> str | None:
    """Return the module that is a head, where heads are evidence of the task; None where they are several."""
    opened, model = parts.folder, parts.models.tasks
    counts = parts.rules.head_evidence and not model.can_generate() and not _has_encoder(model)
    if not counts or not any(opened.heads):
        return None
    heads = [{parts.models.heads[name]: x for name, x in head.items()} for head in opened.heads]
    paths = own_modules(model, heads, opened.names)
    return paths[0] if len(paths) == 1 else None
