"""From the tensors of an adapter's file and its configuration to one part for each parameter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from submerge.errors import Problem, RequestError, few
from submerge.store.adapter._blocks import diagonal_blocks
from submerge.store.adapter._computed import ComputedUpdate
from submerge.store.adapter._config import AdapterConfig
from submerge.store.adapter._factor_shapes import expert_count, shape_fault
from submerge.store.adapter._keys import FactorKeys, SortedKeys, sort_keys
from submerge.store.adapter._kinds import LORA
from submerge.store.adapter._parts import PACKED_ORDER, Add, LowRankPart, Part, Replace, Rows
from submerge.store.adapter._transformed import Transformed
from submerge.store.adapter._tuners import shared_tensors, tuner_parts
from submerge.store.format import DTYPES, TensorEntry

__all__ = ["build_parts"]

_GATHER = "save it gathered (DeepSpeed: stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py)"
_AGAIN = "the file is not what the configuration describes: save the adapter again with PEFT"
# the embeddings whose new values PEFT saves when the vocabulary was resized
_EMBEDDINGS = frozenset({
    "embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared",
    "tok_embeddings", "output_embeddings",
})  # fmt: skip


@dataclass
class _Build:
    """The parts so far, and what is wrong so far; `bare` are modules of which bare parameters are adapted."""

    config: AdapterConfig
    where: str
    parts: dict[str, Part] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bare: set[str] = field(default_factory=set)

    def wrong(self, what: str, hint: str = _AGAIN) -> None:
        self.problems.append(Problem(what, self.where, hint))

    def put(self, name: str, part: Part) -> None:
        if name in self.parts:
            self.wrong(f"adapts {name} in two ways at once", "merge it with PEFT (merge_and_unload)")
        self.parts[name] = part


def build_parts(
    entries: Mapping[str, TensorEntry], config: AdapterConfig, where: str
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the parts by the parameter's name, in order of names, and notes on what was recognised.

    `entries` are the file's tensors by PEFT's keys. Raises `RequestError` with every tensor that is missing,
    unknown, or of a shape that does not fit.
    """
    shared, entries = shared_tensors(entries, config)
    by_role = sort_keys(entries, where, config.kind)
    build = _Build(config, where, problems=by_role.problems)
    unsupported = [key for key, entry in entries.items() if not DTYPES[entry.dtype].supported]
    if unsupported:
        build.wrong(f"holds quantised or complex tensors ({few(unsupported)})", "save it in float32")
    if config.kind is LORA:
        names = _parameter_names(by_role, build)
        for key, factors in by_role.factors.items():
            if key in names:
                _add_factors(factors, names[key], by_role.wrapped, build)
    else:
        for factors in by_role.factors.values():
            _add_tuned(factors, by_role.wrapped, shared, build)
    _add_plain({**by_role.plain, **by_role.wrapped}, build)
    _note_values(build)
    if not build.parts and not build.problems:
        build.wrong("holds no tensors")
    if build.problems:
        raise RequestError(build.problems)
    return dict(sorted(build.parts.items())), (*_ranks(build.parts), *build.notes)


def _ranks(parts: dict[str, Part]) -> list[str]:
    counts = Counter(part.rank for part in parts.values() if isinstance(part, LowRankPart))
    if not counts:
        return []
    listed = sorted(counts.items())
    first = f"{listed[0][1]} module{'s' if listed[0][1] > 1 else ''} of rank {listed[0][0]}"
    return [", ".join([first, *(f"{count} of rank {rank}" for rank, count in listed[1:])])]


def _parameter_names(by_role: SortedKeys, build: _Build) -> dict[tuple[str, int], str]:
    """Return the adapted parameter's name for each wrapper: `.weight`, or one of `target_parameters`."""
    depths: dict[str, list[int]] = {}
    for module, depth in by_role.factors:
        depths.setdefault(module, []).append(depth)
    names = {}
    for module, levels in depths.items():
        targets = _targets(module, build.config, by_role.factors[module, min(levels)])
        if targets:
            build.bare.add(module)
        if not targets:
            if len(levels) > 1:
                build.wrong(f"adapts {module} {len(levels)} times, but target_parameters does not name it")
            targets = ["weight"]
        elif len(targets) != len(levels):
            what = f"holds factors for {len(levels)} parameters of {module}, but target_parameters names "
            build.wrong(what + few(targets))
            continue
        elif len(targets) > 1:
            if not set(targets) <= set(PACKED_ORDER):
                what = f"does not say which factors of {module} belong to which of {few(targets)}"
                build.wrong(what, "merge it with PEFT (merge_and_unload)")
                continue
            # two wrappers of one module have the same keys but for their depth: the parameter that the module
            # defines first was wrapped first, and is the innermost
            targets.sort(key=PACKED_ORDER.index)
        for depth, target in zip(sorted(levels, reverse=True), targets, strict=False):
            names[module, depth] = f"{module}.{target}"
    return names


def _targets(module: str, config: AdapterConfig, factors: FactorKeys) -> list[str]:
    """Return which parameters of a module `target_parameters` names."""
    right = factors.roles.get("lora_A")
    targets: list[str] = []
    for target in config.parameters:
        path, _, last = target.rpartition(".")
        if path:
            matches = module == path or module.endswith(f".{path}")
        else:  # a bare name matches in every module: not in those that are adapted as modules
            plain = right is not None and right.shape[0] == config.rank_of(module)
            matches = not _targeted(module, config) and not (plain and factors.depth == 0)
        if matches and last not in targets:
            targets.append(last)
    return targets


def _targeted(module: str, config: AdapterConfig) -> bool:
    modules = config.raw.get("target_modules")
    if isinstance(modules, list):
        return any(module == name or module.endswith(f".{name}") for name in modules)
    try:
        return isinstance(modules, str) and modules != "all-linear" and bool(re.fullmatch(modules, module))
    except re.error:
        return False


def _add_factors(keys: FactorKeys, name: str, wrapped: dict[str, TensorEntry], build: _Build) -> None:
    """Add the update of one parameter, and those of its module's rows and bias where there are any."""
    module, roles, config = keys.module, dict(keys.roles), build.config
    rows = roles.pop("rows", None)
    if rows is not None:
        _add_rows(module, rows, wrapped.pop(f"{module}.token_adapter.weight", None), build)
        if not roles:
            return
    embedding = "embedding_A" in roles or "embedding_B" in roles
    right = roles.pop("embedding_A" if embedding else "lora_A", None)
    left = roles.pop("embedding_B" if embedding else "lora_B", None)
    if left is None or right is None:
        what = f"the adapter of {module} lacks its factor {'B' if left is None else 'A'}"
        build.wrong(what, "copy or download it again; if it was trained sharded, save it gathered")
        return
    if config.blocks and not embedding and _add_blocks(module, left, right, wrapped, build):
        _add_bias(module, roles.get("bias"), left, config.scale_of(module, config.rank_of(module)), build)
        return
    bare = module in build.bare
    own = name if bare else module
    rank = config.rank_of(own)
    experts = expert_count(left, right, rank) if bare else 0
    magnitude = roles.get("magnitude")
    fault = shape_fault(left, right, rank=rank, experts=experts, embedding=embedding)
    if not fault and "lora_A" in roles:
        fault = "both kinds of factors"
    if not fault and (magnitude is not None) != bool(config.raw.get("use_dora")) and not experts:
        fault = f"{'lacks' if magnitude is None else 'holds'} a magnitude, but use_dora says otherwise"
    if fault:
        build.wrong(f"the adapter of {own} {fault}", _GATHER if "without gathering" in fault else _AGAIN)
        return
    part = LowRankPart(
        left_entry=left,
        right_entry=right,
        scale=config.scale_of(own, rank),
        transposed=embedding or (config.transposed and not experts and len(right.shape) == 2),
        magnitude=magnitude,
        experts=experts,
        settled=not experts,
        copy=wrapped.pop(f"{module}.weight", None),
        kind="embedding" if embedding else "parameter" if bare else "linear",
    )
    if part.copy is not None:
        build.notes.append(f"{module}: the weight itself was saved beside what was trained of it")
    build.put(name, part)
    _add_bias(module, roles.get("bias"), left, part.scale, build)


def _add_bias(module: str, bias: TensorEntry | None, left: TensorEntry, scale: float, build: _Build) -> None:
    """Add the bias of B to that of the module, where there is one."""
    if bias is None:
        return
    if bias.shape != left.shape[:1]:
        build.wrong(f"the bias of {module} has the shape {bias.shape}, but B has {left.shape}")
    build.put(f"{module}.bias", Add(bias, scale))


def _add_blocks(
    module: str, left: TensorEntry, right: TensorEntry, wrapped: dict[str, TensorEntry], build: _Build
) -> bool:
    """Add the update of a module of which a factor has blocks (BD-LoRA); return whether it is one."""
    config = build.config
    rank = config.rank_of(module)
    part = diagonal_blocks(module, left, right, config.blocks, scale=config.scale_of(module, rank))
    if part is None:
        return False
    if isinstance(part, str) or part.rank != rank:
        what = part if isinstance(part, str) else f"has rank {part.rank}, but the configuration says {rank}"
        build.wrong(f"the adapter of {module} {what}")
        return True
    table = wrapped.pop(f"{module}.weight", None)
    build.put(f"{module}.weight", replace(part, transposed=config.transposed, copy=table))
    return True


def _add_tuned(
    keys: FactorKeys,
    wrapped: dict[str, TensorEntry],
    shared: Mapping[str, TensorEntry],
    build: _Build,
) -> None:
    """Add what a module's tensors of another kind than LoRA do to its parameters."""
    module, roles = keys.module, dict(keys.roles)
    if keys.depth:
        build.wrong(f"adapts {module} twice", "merge it with PEFT (merge_and_unload)")
        return
    if (rows := roles.pop("rows", None)) is not None:
        _add_rows(module, rows, wrapped.pop(f"{module}.weight", None), build)
        return
    parts = tuner_parts(module, roles, build.config, shared)
    if isinstance(parts, str):
        build.wrong(f"the {build.config.kind.name} of {module} {parts}")
        return
    if not parts:
        build.notes.append(f"{module} has no rank left")
    table, part = wrapped.pop(f"{module}.weight", None), parts.get("weight")
    if table is not None and (part is None or isinstance(part, LowRankPart | ComputedUpdate | Transformed)):
        parts["weight"] = Replace(table) if part is None else replace(part, copy=table)
        build.notes.append(f"{module}: the weight itself was saved beside what was trained of it")
    elif table is not None:
        what = f"holds the weight of {module} beside what the {build.config.kind.name} does to it"
        build.wrong(what, "merge it with PEFT (merge_and_unload) and give the checkpoint")
    for leaf, part in parts.items():
        build.put(f"{module}.{leaf}", part)


def _add_rows(module: str, entry: TensorEntry, table: TensorEntry | None, build: _Build) -> None:
    indices = build.config.tokens_of(module)
    if indices is None and table is not None and module.rpartition(".")[2] in _EMBEDDINGS:
        # of a resized vocabulary PEFT saves a tied head, too, which has the rows of the embeddings
        build.notes.append(f"{module} is tied to the embeddings, whose rows were trained")
        return
    if indices is None or len(entry.shape) != 2 or len(indices) != entry.shape[0]:
        given = "none" if indices is None else str(len(indices))
        what = f"holds trained rows of {module} of the shape {entry.shape}, but trainable_token_indices "
        build.wrong(f"{what}names {given}")
        return
    build.put(f"{module}.weight", Rows(entry, indices, table))


def _add_plain(entries: Mapping[str, TensorEntry], build: _Build) -> None:
    """Add the parameters that were saved with all their values."""
    unknown = []
    for name, entry in entries.items():
        if 0 in entry.shape:
            what = f"holds no values of {name}, shape {list(entry.shape)}"
            build.wrong(f"{what}: it was saved from a sharded training without gathering", _GATHER)
            continue
        module = name.rpartition(".")[0]
        biases = build.config.bias != "none" and name.rpartition(".")[2] == "bias"
        saved = any(f"{path}." in f"{module}." for path in build.config.saved)  # PEFT takes any ending
        resized = module.rpartition(".")[2] in _EMBEDDINGS
        if not (biases or saved or resized):
            unknown.append(entry.name)
            continue
        if resized and not (biases or saved):
            build.notes.append(f"{name} was saved whole, as PEFT does when a vocabulary was resized")
        build.put(name, Replace(entry))
    if unknown:
        what = f"holds tensors that its configuration does not account for ({few(unknown)})"
        build.wrong(what, "modules_to_save and bias must name them; save the adapter again with PEFT")


def _note_values(build: _Build) -> None:
    """Note which parameters, and which rows of others, have values of their own."""
    replaced = sorted(name for name, part in build.parts.items() if isinstance(part, Replace))
    if replaced:
        build.notes.append(f"{len(replaced)} tensors saved whole ({few(replaced)})")
    rows = [
        f"{len(part.indices)} rows of {name}" for name, part in build.parts.items() if isinstance(part, Rows)
    ]
    build.notes.extend(sorted(rows))
