"""A LoRA file without `adapter_config.json`, as diffusers and kohya's scripts write it, as an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError, few
from submerge.store._checkpoint import Checkpoint
from submerge.store.adapter import (
    Adapter,
    AdapterConfig,
    Composed,
    LoraNames,
    LowRankPart,
    Part,
    adapter_config,
    build_parts,
    component_of,
    dense_updates,
    lora_names,
)
from submerge.store.format import FileTable, TensorEntry, read_header, read_values

__all__ = ["lora_file"]

_METADATA = "lora_adapter_metadata"  # diffusers' key in the header, of the components' configurations


def lora_file(model: Checkpoint) -> Adapter | None:
    """Return the adapter that a file opened as a checkpoint really is, or None for a model.

    Scales are as diffusers and kohya have them: alpha / rank where the file holds an alpha, what the
    configuration in the file's header says where there is one, and 1 otherwise. Raises `RequestError` for
    adapters that are no plain LoRA or whose form is not known: the factors must never be merged one by one.
    """
    where = str(_file(model))
    settings = (model.config or {}).items()
    has_lora = any("lora" in key and isinstance(value, (dict, list)) for key, value in settings)
    configs = _configurations(model)
    names = lora_names(list(model.tensors), where, has_lora=has_lora, configured=bool(configs))
    if names is None:
        return None
    if names.alphas and configs:
        what = f"says its scale twice: by {min(names.alphas.values())}, and in {_METADATA} of its header"
        raise RequestError(Problem(what, where, "save it again with diffusers"))
    parts, notes = _parts(model, names, configs, where)
    return Adapter(
        label=model.label,
        path=model.path,
        revision=model.revision,
        config={},
        base=None,
        base_revision=None,
        parts=parts,
        notes=(f"in the form of {names.form}", *notes),
        files=tuple(model.files),
        memory=model.memory,
        pending=model.pending,
        form=names.form,
        left_out=_left_out(names),
    )


def _left_out(names: LoraNames) -> tuple[str, ...]:
    """Return what of a file is no part of any model, in words."""
    if not names.texts:
        return ()
    what = f"holds embeddings of tokens that were trained with it ({few(names.texts)})"
    return (f"{what}: they are left out, and are to be loaded from that file",)


@dataclass(frozen=True)
class _ByFile(AdapterConfig):
    """What the file alone says: each module's rank, and the scale 1."""

    ranks: Mapping[str, int] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        return self.ranks.get(module, 1)

    def scale_of(self, module: str, rank: int) -> float:
        return 1.0


def _parts(
    model: Checkpoint, names: LoraNames, configs: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[dict[str, Part], list[str]]:
    """Return the parts of all components, and notes."""
    groups: dict[str, dict[str, TensorEntry]] = {}
    for key, own in names.keys.items():
        component, _ = component_of(key, names.form)
        groups.setdefault(component, {})[key] = model.tensors[own]
    parts: dict[str, Part] = {}
    notes = []
    for component, entries in groups.items():
        raw = configs.get(component)
        config = _by_file(entries, where) if raw is None else adapter_config(raw, where)
        own_parts, own_notes = build_parts(entries, config, where)
        parts |= own_parts
        notes += [f"{component}: {note}" if component else note for note in own_notes]
    parts |= _dense_parts(model, names, parts, where)
    for module, own in names.cores.items():
        name, core = f"{module}.weight", model.tensors[own]
        part = parts.get(name)
        assert isinstance(part, LowRankPart)
        if len(core.shape) < 3 or core.shape[:2] != (part.rank, part.rank):
            raise RequestError(Problem(f"{own} has the shape {list(core.shape)}, rank {part.rank}", where))
        parts[name] = replace(part, core=core)
    for module, own in names.norms.items():
        name = f"{module}.weight"
        parts[name] = _with_norms(parts[name], model.tensors[own], where)
    for module, own in names.alphas.items():
        part, alpha = parts.get(f"{module}.weight"), model.tensors[own]
        if alpha.numel != 1:
            raise RequestError(Problem(f"{own} has the shape {list(alpha.shape)}: it is no number", where))
        if isinstance(part, LowRankPart | Composed):
            parts[f"{module}.weight"] = replace(part, alpha=alpha)
    _check_scales(model, parts, where)
    if not configs:
        scaled = f"{len(names.alphas)} modules with an alpha of their own" if names.alphas else "no alpha"
        notes.append(f"{scaled}; without one the scale is 1")
    return dict(sorted(parts.items())), notes


def _dense_parts(
    model: Checkpoint, names: LoraNames, factored: Mapping[str, Part], where: str
) -> dict[str, Part]:
    """Return the updates that are no product of two factors, by parameter."""
    parts: dict[str, Part] = {}
    problems = []
    for module, keys in names.dense.items():
        entries = {role: model.tensors[key] for role, key in keys.items()}
        for leaf, part in dense_updates(entries).items():
            name = f"{module}.{leaf}"
            if part is None:
                problems.append(
                    Problem(f"holds parts of an update of {name} that do not fit ({few(keys)})", where)
                )
            elif name in factored:
                problems.append(Problem(f"changes {name} in two ways at once", where, "keep one of them"))
            else:
                parts[name] = part
    if problems:
        raise RequestError(problems)
    return parts


def _with_norms(part: Part, norms: TensorEntry, where: str) -> LowRankPart:
    """Return an update with LyCORIS' magnitudes of DoRA: one for each output, or one for each input."""
    assert isinstance(part, LowRankPart)
    outputs, inputs, *kernel = part.stored
    ones = (1,) * len(kernel)
    if norms.shape in ((outputs, 1, *ones), (outputs, 1), (outputs,)):
        return replace(part, magnitude=norms)
    if norms.shape in ((1, inputs, *ones), (1, inputs)) and max(kernel, default=1) == 1:
        return replace(part, magnitude=norms, by_input=True)
    what = f"{norms.name} has the shape {list(norms.shape)}, the weight {list(part.stored)}"
    hint = "merge it into its model with the program that made it, and give that model"
    raise RequestError(
        Problem(f"{what}: norms by output, or of linear maps by input, are expected", where, hint)
    )


def _check_scales(model: Checkpoint, parts: Mapping[str, Part], where: str) -> None:
    """Raise `RequestError` where it is not clear whether alpha / rank is the scale of a product.

    Of two matrices that are stored whole LyCORIS takes 1 for it, and writes the rank as alpha.
    """
    whole = [part.alpha for part in parts.values() if isinstance(part, Composed) and part.rank is None]
    alphas = [alpha for alpha in whole if alpha is not None and alpha.file is not None]
    metadata = read_header(model.files[0]).metadata if alphas and not model.pending else {}
    rank = metadata.get("ss_network_dim", "")
    if not rank.isdigit():
        return
    with FileTable() as table:
        value = float(read_values(table.source(alphas[0]), alphas[0].dtype, 0, 1)[0])
    if value != float(rank):
        what = (
            f"{alphas[0].name} is {value:g} and the rank {rank}, but LoKr with whole matrices has the scale 1"
        )
        hint = "if it was trained with alpha / rank, multiply lokr_w1 by that, and remove its alpha"
        raise RequestError(Problem(what, where, f"{hint}; if with 1, remove its alpha"))


def _by_file(entries: Mapping[str, TensorEntry], where: str) -> _ByFile:
    end = ".lora_A.weight"
    shapes = {key.removesuffix(end): entry.shape for key, entry in entries.items() if key.endswith(end)}
    dora = any(key.endswith(".lora_magnitude_vector") for key in entries)
    plain = adapter_config({"use_dora": dora}, where)
    return _ByFile(**vars(plain), ranks={module: shape[0] for module, shape in shapes.items() if shape})


def _file(model: Checkpoint) -> Path:
    return model.path if model.path.is_file() or not model.files else model.files[0]


def _configurations(model: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return PEFT's configuration of each component, as far as diffusers wrote them into the header."""
    configs: dict[str, dict[str, Any]] = {}
    files = () if model.pending else (file for file in model.files if file.suffix == ".safetensors")
    for file in files:
        text = read_header(file).metadata.get(_METADATA)
        if text is None:
            continue
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise RequestError(Problem(f"{_METADATA} in the header is no JSON object", str(file)))
        for key, value in fields.items():
            component, field_name = component_of(key, "diffusers")
            configs.setdefault(component, {})[field_name] = value
    return configs
