"""The plan of a merge: everything that can be known before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submerge.deferred import torch
from submerge.engine.plan._adapter_form import adapter_warnings
from submerge.engine.plan._align import plan_tensors
from submerge.engine.plan._copies import resolve_copies
from submerge.engine.plan._gate import GatePlan, plan_gate
from submerge.engine.plan._memory import Budget, budget
from submerge.engine.plan._models import NO_BASE, open_models
from submerge.engine.plan._naming import align_models, idle_models, naming_warnings
from submerge.engine.plan._settings import Settings
from submerge.engine.plan._show import as_html, as_text
from submerge.engine.plan._tensor import TensorPlan
from submerge.engine.plan._tokens import TokenPlan, plan_tokens
from submerge.errors import Problem, RequestError, few
from submerge.recipe import Recipe, load_recipe
from submerge.store import Checkpoint, Shard, is_tokenizer_file, plan_shards

__all__ = ["MergePlan", "Settings", "check_device", "make_plan", "plan_models"]

ADAPTER_DTYPES = ("bfloat16", "float16", "float32")
DIFFUSERS = "diffusion_pytorch_model"  # the only name under which Diffusers looks for weights


@dataclass(frozen=True, repr=False)
class MergePlan:
    """What a merge will read, compute and write; printed, it is a summary in a few lines.

    Attributes:
        recipe: what was asked for.
        settings: how it will be run.
        models: the distinct checkpoints.
        donor: index of the model that gives the names, the config and the side files: the base, or the
            first model.
        participants: indices of the models that are merged, in the method's order.
        tensors: what happens to each tensor of the output, with the value of each option.
        shards: the files of weights that will be written.
        unused: for a model, the names of its tensors that no output reads.
        warnings: what deserves a look.
        budget: memory and workers.
        gate: what a method keeps for the run time, if it keeps anything.
        tokens: where the tokenizer comes from; an adapter, or a merge in memory, has none.
        unties: whether the output's configuration must untie its embeddings.

    Examples:
        >>> import submerge
        >>> plan = submerge.plan("recipe.yaml")
        >>> len(plan.tensors), plan.bytes_read, plan.bytes_written
        (39, 1577472, 398408)
        >>> plan.models[plan.donor].label
        'base'
    """

    recipe: Recipe
    settings: Settings
    models: tuple[Checkpoint, ...]
    donor: int
    participants: tuple[int, ...]
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    unused: Mapping[int, tuple[str, ...]]
    warnings: tuple[str, ...]
    budget: Budget
    gate: GatePlan | None = None
    tokens: TokenPlan | None = None
    unties: bool = False

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def role(self, index: int) -> str:
        """Return what a model takes part as: base, merged, both, or with its files only."""
        roles = ["base"] if self.recipe.base and index == self.donor else []
        roles += ["merged"] if index in self.participants else []
        return " and ".join(roles) or "files only"

    @property
    def carried(self) -> list[tuple[Path, Path]]:
        """The files that travel beside the weights: their folders, and their paths inside."""
        donor = self.models[self.donor]
        tokenizer = self.tokens.tokenizer if self.tokens else donor.tokenizer
        files = [file for file in donor.side_files if not is_tokenizer_file(file)]
        return [
            *((donor.path, file) for file in files),
            *((tokenizer.folder, file) for file in tokenizer.files),
            *((donor.path, file) for file in donor.other_weights),
        ]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """How the models' vocabularies compare, a line for each."""
        return self.tokens.lines if self.tokens else ()

    @property
    def pending(self) -> bool:
        """Whether weights of models on the Hub are still to be downloaded."""
        return any(model.pending for model in self.models)

    @property
    def bytes_read(self) -> int:
        """Bytes of input that the result depends on, each counted once."""
        adapters = {file for m in self.models if m.adapter for file in m.adapter.files if file.exists()}
        values = sum(i.entry.nbytes for t in self.tensors for i in t.read)
        return values + sum(file.stat().st_size for file in adapters)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output's weight files."""
        return sum(shard.size for shard in self.shards)


def make_plan(
    source: str | Path | Mapping[str, Any] | Recipe,
    settings: Settings | None = None,
    *,
    download: bool = False,
) -> MergePlan:
    """Return the plan of a recipe, from the recipe and the files' headers alone.

    Args:
        source: a path, YAML text (with a newline), a mapping, or a `Recipe`.
        settings: how the merge will be run.
        download: fetch the weights of models on the Hub, too; else only their small files and headers.

    Raises:
        RequestError: every problem of the recipe, or (if that is fine) of the files.

    Examples:
        >>> import submerge
        >>> plan = submerge.plan("recipe.yaml")
        >>> plan.tensors[0].name, plan.tensors[0].treatment
        ('lm_head.weight', 'merge')
        >>> submerge.merge(plan, "merged").warnings
        ()
    """
    settings = settings or Settings()
    if settings.device != "cpu":
        check_device(settings.device)
    recipe = source if isinstance(source, Recipe) else load_recipe(source)
    specs, models = open_models(recipe, settings, download=download)
    tokens, problems = _tokens(recipe, models, specs)
    problems += _links(recipe, models[_roles(recipe, specs)[0]])
    try:
        plan = plan_models(recipe, models, specs, settings)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    warnings = tokens.warnings if tokens else _untold(recipe)
    return replace(plan, tokens=tokens, warnings=(*plan.warnings, *warnings))


def check_device(name: str) -> torch.device:
    """Return the torch device called `name`; raise `RequestError` if it is not one that can be used."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(Problem(f"no such device: {name}", "--device", "use cpu or cuda")) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(Problem("no CUDA device is available", "--device", "use cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"only {torch.cuda.device_count()} CUDA devices are there, numbered from 0"
        raise RequestError(Problem(found, "--device", f"{name} is none of them"))
    if device.type not in ("cpu", "cuda"):
        raise RequestError(Problem(f"{name} is not supported", "--device", "use cpu or cuda"))
    return device


def plan_models(
    recipe: Recipe, models: Sequence[Checkpoint], specs: Sequence[str], settings: Settings
) -> MergePlan:
    """Return the plan for opened models, where `specs[i]` is how the recipe names `models[i]`.

    Tensors alone are looked at; vocabularies are not compared.
    """
    donor, participants = _roles(recipe, specs)
    problems = _unfit(recipe)
    alignments, found = align_models(models, donor, participants)
    problems += found
    copies = resolve_copies(recipe, [alignment.model for alignment in alignments], donor, participants)
    models = copies.models
    alignments = [a.of(model) for a, model in zip(alignments, models, strict=True)]
    gate: GatePlan | None = None
    if recipe.method.keeps:
        gate, found = plan_gate(recipe, models, donor, participants)
        problems += found
    tensors, found = plan_tensors(recipe, alignments, donor, participants, copies.same)
    problems += found
    if not models[donor].tensors:
        problems.append(Problem("there is no tensor to merge", models[donor].label))
    problems = problems or idle_models(tensors, models, donor, participants)
    if problems:
        raise RequestError(problems)
    as_adapter = recipe.output.form == "adapter"
    unused = {} if as_adapter else _unused(models, tensors, gate, participants)
    files = models[donor].shards.values()
    stem = DIFFUSERS if any(file.startswith(DIFFUSERS) for file in files) else "model"
    shards = (
        []
        if as_adapter
        else plan_shards([(t.name, t.dtype, t.shape) for t in tensors], settings.shard_size, stem=stem)
    )
    return MergePlan(
        recipe,
        settings,
        tuple(models),
        donor,
        tuple(participants),
        tuple(tensors),
        tuple(shards),
        unused,
        (
            *naming_warnings(tensors, alignments, donor, participants),
            *_warnings(models, donor, participants, unused, tensors),
            *(() if gate else _other_shapes(models[donor], tensors, as_adapter)),
            *adapter_warnings(models),
            *copies.warnings,
        ),
        budget(tensors, settings.workers, settings.max_memory),
        gate,
        unties=copies.unties,
    )


def _unfit(recipe: Recipe) -> list[Problem]:
    """Return why what is asked for is no adapter: its type, or a method of whole weights, not of updates."""
    method, dtype = recipe.method, recipe.out_dtype or recipe.dtype
    problems: list[Problem] = []
    if recipe.output.form == "checkpoint":
        return problems
    if dtype not in (None, *ADAPTER_DTYPES):
        problems.append(
            Problem(f"{dtype} is no type for an adapter", "dtype", f"one of {', '.join(ADAPTER_DTYPES)}")
        )
    if method.keeps:
        what = f"{method.name} keeps a gate over its tasks, and an adapter has no place for one"
        problems.append(
            Problem(what, "output", "write a checkpoint; `submerge export` makes an adapter of each task")
        )
    if method.origin == "zero" and method.coefficients is None:
        what = f"{method.name} merges whole weights, and an adapter holds updates"
        hint = "write a checkpoint, or choose another method (`submerge methods`)"
        problems.append(Problem(what, "output", hint))
    return problems


def _links(recipe: Recipe, donor: Checkpoint) -> list[Problem]:
    """Return why files beside the weights cannot be carried into the output, but for the tokenizer's."""
    if recipe.output.form == "adapter":
        return []
    return [problem for path, problem in donor.links.items() if not is_tokenizer_file(path)]


def _roles(recipe: Recipe, specs: Sequence[str]) -> tuple[int, list[int]]:
    """Return which model gives names and side files, and which the method merges."""
    participants = [specs.index(entry.model) for entry in recipe.participants]
    donor = NO_BASE if specs[0] == NO_BASE else recipe.base
    return (participants[0] if donor is None else specs.index(donor)), participants


def _tokens(
    recipe: Recipe, models: Sequence[Checkpoint], specs: Sequence[str]
) -> tuple[TokenPlan | None, list[Problem]]:
    """Return the plan for the tokenizer, and problems; an adapter has no rows that tokens could name."""
    if recipe.output.form == "adapter":
        return None, []
    donor, participants = _roles(recipe, specs)
    return plan_tokens(recipe, models, specs, donor, participants)


def _untold(recipe: Recipe) -> tuple[str, ...]:
    """Return what an adapter leaves out of what the recipe asks for."""
    if recipe.tokenizer_source is None:
        return ()
    return ("tokenizer_source: an adapter carries no tokenizer",)


def _unused(
    models: Sequence[Checkpoint],
    tensors: Sequence[TensorPlan],
    gate: GatePlan | None,
    participants: Sequence[int],
) -> dict[int, tuple[str, ...]]:
    """Return, for each model that is merged, its tensors that no output reads."""
    used: dict[int, set[str]] = {}
    for task in gate.tasks if gate else ():
        used.setdefault(task.model, set()).update(task.head)
    for tensor in tensors:
        for member in tensor.members:
            used.setdefault(member.model, set()).add(member.entry.name)
    return {
        index: names
        for index, model in enumerate(models)
        if index in participants
        and (names := tuple(n for n in model.tensors if n not in used.get(index, ())))
    }


def _warnings(
    models: Sequence[Checkpoint],
    donor: int,
    participants: Sequence[int],
    unused: Mapping[int, tuple[str, ...]],
    tensors: Sequence[TensorPlan],
) -> list[str]:
    """Return what is legal and yet worth a look."""
    found = []
    base = models[donor]
    if base.other_weights:
        copied = ", ".join(str(path) for path in base.other_weights[:3])
        found.append(f"{base.label}: the weights in its subfolders are copied, not merged ({copied})")
    written = {tensor.name for tensor in tensors}
    for index, names in unused.items():
        model, names = models[index], tuple(name for name in names if name not in written)
        if not names:
            continue
        what = (
            f"{model.label}: {len(names)} of its tensors have no place in the output ({', '.join(names[:3])}"
        )
        found.append(what + (", …)" if len(names) > 3 else ")"))
    kinds = {models[m].config.get("model_type") for m in participants if models[m].config}  # type: ignore[union-attr]
    if len(kinds) > 1:
        found.append(f"the configs name different model types: {', '.join(sorted(map(str, kinds)))}")
    return found


def _other_shapes(base: Checkpoint, tensors: Sequence[TensorPlan], as_adapter: bool) -> list[str]:
    """Return what became of tensors that a model has in another shape than the base."""
    reasons: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.treatment == "base":
            reasons.setdefault(tensor.why, []).append(tensor.name)
    done = "not in the adapter" if as_adapter else f"taken from {base.label} as it is"
    return [f"{few(names)}: {done} ({why})" for why, names in reasons.items()]
