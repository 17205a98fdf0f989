"""`submerge.load`: a merged folder as a transformers model with the folder's gate."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from submerge.arguments import checked
from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, few
from submerge.gating import Gate, Recent
from submerge.names import loaded_names
from submerge.serving._architecture import head_sizes, model_class, with_linear_heads
from submerge.serving._controller import Controller
from submerge.serving._folder import Folder, gate_manifest
from submerge.serving._load_options import load_options
from submerge.serving._mass import MassController
from submerge.serving._modality import ModalityController
from submerge.serving._projectors import ProjectorController
from submerge.serving._routed_model import gated_class
from submerge.store import MODALITY_GATE, PROJECTOR_GATE, is_adapter, open_adapter

__all__ = ["CONTROLLERS", "load"]

CACHE = 256 << 20
"""Bytes of cores and parameters of recent sets of tasks that are held."""
CONTROLLERS: Mapping[str, type[Controller]] = {
    "mass": MassController,
    MODALITY_GATE: ModalityController,
    PROJECTOR_GATE: ProjectorController,
}
"""The kinds of gates of the library, by the method whose gate it is, as submerge.json names it."""


@checked
def load(
    folder: str | Path,
    *,
    features: bool = False,
    architecture: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    cache: int = CACHE,
    **settings: Any,
) -> Any:
    """Return the transformers model of a folder whose method has a gate, ready to answer.

    The gate of MASS routes: `model(**inputs)` finds the tasks of each input and runs it with their updates,
    and with the head of the first of them; the output has `tasks`, `coefficients` and `routing` besides, and
    of classifiers `labels`, the names of the classes. `model.route(**inputs)` only finds the tasks. `task=`,
    `group=`, `form=` and `prior=` go to either, and to `generate`, which routes once, on the prompt.

    A composed model takes text with inputs of any of its `modalities`, several of each, in any order. Its
    class is that of the language model, and `forward` and `generate` take the specialists' inputs besides
    (`pixel_values`, `input_features`, …, or `image_pixel_values` where two specialists share a name), as
    `submerge.load_processor` returns them. Each token runs with the parameters of its modality; text alone
    runs as in the plain language model. `save_pretrained` writes a folder that can be loaded again.

    A model with the projectors of several tasks mixes their outputs for each input, such as an image, by what
    it is similar to. The output has `tasks`, the name of each input's leading task (`a+b` where two share a
    projector), and `shares` [inputs, K] on the CPU, in the order of `model.projectors`; images come before
    videos, and these before sounds. `model.shares(**inputs)` returns the shares without running the language
    model. `task=`, a name or one for each sample, forces a projector, in `generate`, too. A call with text
    alone uses no projector. `save_pretrained` writes a folder that can be loaded again.

    These models are for use, not for training. Calls of several threads run one after another: what a gate
    decides is the model's own state. `from_pretrained` of the model's class is this function.

    Args:
        folder: what `submerge merge` wrote, or `submerge many export`; an adapter needs PEFT, and its base.
        features: True for the model without the heads of its tasks, which returns hidden states.
        architecture: the class of transformers to load, where the tasks do not name one.
        dtype: of all parts of the model, updates too; by default those of the folder, and of encoders of a
            composed model those of their own models. `torch_dtype` is taken, too.
        device: of the model; the CPU by default. A `device_map` is taken where it has one device.
        attn_implementation: of all parts of the model, such as `eager`, which returns attentions.
        cache: bytes of merged cores that are held for sets of tasks that come again.
        **settings: options of the gate of MASS, in the place of the recipe's: `select="threshold"`; of a gate
            of projectors `score`, `temperature`, `top`, `centred` and `key`.

    Raises:
        RequestError: there is no gate, the bank is damaged, or the tasks' models do not fit together. Of a
            composed model the calls raise it, too, where inputs do not fit the placeholders of a prompt.

    Examples:
        >>> import torch
        >>> import submerge
        >>> models = [{"model": "chat"}, {"model": "code"}]
        >>> recipe = {"merge_method": "mass", "base_model": "base", "models": models}
        >>> report = submerge.merge(recipe, "served")
        >>> model = submerge.load("served")
        >>> out = model(input_ids=torch.tensor([[3, 14, 15]]), task="code")
        >>> out.logits.shape, out.tasks
        (torch.Size([1, 3, 256]), ['code'])
    """
    transformers = required("transformers", "submerge.load needs")
    loading = load_options(settings, dtype=dtype, device=device, attn_implementation=attn_implementation)
    required("transformers.conversion_mapping", "submerge.load needs")  # new in its version 5
    controller = _controller(Path(folder))
    opened = with_linear_heads(controller.configured(controller.open(Path(folder)), settings))
    opened = dataclasses.replace(opened, loading=loading.arguments)
    config = _configuration(transformers, opened.path)
    heads = any(opened.heads) and not features
    kind, partial = model_class(transformers, opened, config, architecture, heads=heads)
    sizes = head_sizes(opened, heads=heads)
    gated = gated_class(kind, controller, load, controller.arguments(opened))
    model, made = _pretrained(transformers, gated, opened.path, {**loading.arguments, **sizes})
    names = loaded_names(model, [*opened.updated, *{n for head in opened.heads for n in head}])
    _check_made(
        model, opened, made - {names.get(n, n) for head in opened.heads for n in head}, partial=partial
    )
    model.controller = controller.attach(
        model, opened, Gate(Recent(cache)), names, heads=heads, partial=partial
    )
    model.requires_grad_(False).eval()
    return model if loading.device is None else model.to(loading.device)


def _controller(path: Path) -> type[Controller]:
    """Return the controller of a folder's kind of gate: ours, or one that another package registers."""
    _, gate = gate_manifest(path)
    if gate.method in CONTROLLERS:
        return CONTROLLERS[gate.method]
    registered = next(iter(entry_points(group="submerge.gates", name=gate.method)), None)
    if registered is None:
        what = f"the gate of {gate.method} is not known; there are {few(list(CONTROLLERS))}"
        hint = "use the version of Submerge that merged it, or install the package whose method it is"
        raise RequestError(Problem(what, str(path), hint))
    controller: type[Controller] = registered.load()
    return controller


def _configuration(transformers: Any, path: Path) -> Any:
    """Return the configuration of a folder's model: of an adapter that of its base, which it lies on.

    Raises `RequestError` where that base is not here.
    """
    place: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if not is_adapter(path):
        return transformers.AutoConfig.from_pretrained(**place, local_files_only=True)
    adapter = open_adapter(str(path))
    place = {"pretrained_model_name_or_path": adapter.base, "revision": adapter.base_revision}
    try:
        return transformers.AutoConfig.from_pretrained(**place, local_files_only=True)
    except OSError:
        what = f"lies on the base {adapter.base}, which is not here"
        hint = "download it, or where it was moved export again with --base, or say so in adapter_config.json"
        raise RequestError(Problem(what, str(path), hint)) from None


def _pretrained(
    transformers: Any, kind: Any, path: Path, arguments: Mapping[str, Any]
) -> tuple[Any, set[str]]:
    """Return the model of the checkpoint, and the parameters that are random, for it lacks them.

    Heads are made so, and replaced later.
    """
    with warnings.catch_warnings(), quietly(transformers.logging):
        warnings.simplefilter("ignore")
        # that of the class itself is `load`
        model, info = super(kind, kind).from_pretrained(
            path,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **{"dtype": "auto", **arguments},
        )
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _check_made(model: Any, folder: Folder, made: set[str], *, partial: bool) -> None:
    """Tell of parameters that nothing gives values; raise `RequestError` where the class is the checkpoint's.

    Another class may have some that the tasks' models do without. A base may have been saved without its
    pooler, which then nothing uses.
    """
    made = {name for name in made if "pooler" not in name.split(".")}
    if not made:
        return
    what = f"the checkpoint lacks parameters of {type(model).__name__}, or has others: {few(sorted(made))}"
    if not partial and not any(folder.heads):
        raise RequestError(Problem(what, str(folder.path), "copy the whole folder again, or merge again"))
    warnings.warn(f"{what}: they are random", stacklevel=4)
