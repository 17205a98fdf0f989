"""Which updates an adapter can hold, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from submerge.engine.plan.inputs import Inputs
from submerge.engine.plan.tensors._adapter_places import AdapterPlaces, adapter_places
from submerge.engine.plan.tensors._tensor import Input, Module, TensorPlan
from submerge.engine.plan.tokens import is_matrix
from submerge.errors import Problem, few
from submerge.store import (
    ADAPTER_STEM,
    LORA_STEM,
    Checkpoint,
    LoraKeys,
    LowRankPart,
    Part,
    Rows,
    TensorEntry,
    is_of_pipeline,
    saved_table,
)

__all__ = [
    "adapter_file",
    "adapter_form",
    "factors_of",
    "lora_keys",
    "saved_tables",
    "stores_transposed",
    "tied_to_heads",
]


def adapter_form(tensors: Sequence[TensorPlan], inputs: Inputs) -> tuple[list[TensorPlan], list[Problem]]:
    """Return the tensors that an adapter holds or leaves out, and problems.

    A matrix, and whatever an adapter has factors of, becomes factors. What an adapter replaces (a head,
    `modules_to_save`) is saved with all its values, if it is all parameters of its module, and of a table of
    which adapters trained rows alone (`trainable_token_indices`) these are. Others have no place. Adapters
    alone may have saved a table beside what they trained of it; the result has it, too, for what the base has
    there is not known.
    """
    factors = {tensor.name: factors_of(tensor, inputs) for tensor in tensors if tensor.action == "merge"}
    config = inputs.reference_model.config
    replaced = _replaced_modules(inputs)
    matrices = [
        t.name for t in tensors if not factors.get(t.name, True) and is_matrix(t.name, t.shape, config)
    ]
    places = adapter_places([name for name in matrices if name not in replaced], config)
    form = _AdapterForm(
        inputs=inputs,
        factors=factors,
        replaced=replaced,
        rows={tensor.name: _trained_rows(tensor, inputs) for tensor in tensors if tensor.action == "merge"},
        matrices=frozenset(matrices),
        places=places,
        transposed=stores_transposed(inputs.reference_model),
    )
    packed = [tensor.name for tensor in tensors if form.is_changed(tensor) and form.is_packed(tensor)]
    planned = [held for tensor in tensors if (held := form.held(tensor)) is not None]
    return planned, _problems(planned, packed)


@dataclass(frozen=True)
class _AdapterForm:
    """Decides what an adapter holds of each tensor.

    Attributes:
        inputs: the models.
        factors: for each tensor that is merged, the low-rank updates that models have for it.
        replaced: the tensors of modules that adapters replace.
        rows: of each tensor that is merged, the rows that adapters trained of it, where they trained no more.
        matrices: those that no adapter has factors of, and that are matrices.
        places: which of these an adapter has a place for.
        transposed: whether the base stores its linear maps as [in, out].
    """

    inputs: Inputs
    factors: Mapping[str, Sequence[LowRankPart]]
    replaced: Collection[str]
    rows: Mapping[str, tuple[int, ...]]
    matrices: Collection[str]
    places: AdapterPlaces
    transposed: bool

    def is_changed(self, tensor: TensorPlan) -> bool:
        """Return whether a tensor is merged, and a model has another value of it than the base."""
        return tensor.action == "merge" and any(i.patch or not i.relative for i in tensor.inputs)

    def is_packed(self, tensor: TensorPlan) -> bool:
        """Return whether adapters have factors of all experts in one tensor."""
        return any(part.experts and part.expert is None for part in self.factors[tensor.name])

    def held(self, tensor: TensorPlan) -> TensorPlan | None:
        """Return the plan of a tensor in an adapter, or None for one of which the adapter says nothing."""
        if tensor.action == "take_base":  # named in a warning, and neither read nor written
            return replace(tensor, inputs=())
        if tensor.action == "copy":  # PEFT looks for all of a module's tensors
            return tensor if tensor.name in self.replaced else None
        if not self.is_changed(tensor) or self.is_packed(tensor):
            return None
        return tensor if tensor.name in self.replaced else self._as_update(tensor)

    def _as_update(self, tensor: TensorPlan) -> TensorPlan:
        """Return the plan of a tensor whose update is factored, or that an adapter has no place for."""
        if factors := self.factors[tensor.name]:
            return _as_factors(tensor, replace(_module(factors[0]), table=_table(tensor, self.inputs)))
        if rows := self.rows[tensor.name]:
            return replace(tensor, rows=rows)
        if tensor.name in self.places.parameters:
            return _as_factors(tensor, Module("parameter"))
        if tensor.name in self.matrices and tensor.name not in self.places.reasons and _is_weight(tensor):
            return _as_factors(tensor, Module(transposed=self.transposed))
        why = self.places.reasons.get(tensor.name, "an adapter has no place for it")
        return replace(tensor, action="skip", matrix=False, why=why)


def _is_weight(tensor: TensorPlan) -> bool:
    return tensor.name.endswith(".weight")


def factors_of(tensor: TensorPlan, inputs: Inputs) -> list[LowRankPart]:
    """Return the low-rank updates that the models' adapters have for a tensor."""
    parts = [inputs.models[member.model].part(tensor.name) for member in tensor.inputs]
    return [part for part in parts if isinstance(part, LowRankPart)]


def _trained_rows(tensor: TensorPlan, inputs: Inputs) -> tuple[int, ...]:
    """Return the rows of a table that adapters trained; none where a model changes others of them, too."""
    parts = [_changed_part(member, tensor, inputs) for member in tensor.inputs]
    trained = [part for part in parts if isinstance(part, Rows)]
    changed = [part for part in parts if part is not None]
    is_known = inputs.reference_model.has_values and tensor.name.endswith(".weight") and not tensor.is_copy
    if not is_known or len(trained) < len(changed):
        return ()
    return tuple(sorted({row for part in trained for row in part.indices}))


def _changed_part(member: Input, tensor: TensorPlan, inputs: Inputs) -> Part | TensorEntry | None:
    """Return what a model's adapter does to a tensor, or its own tensor; None where it has the base's."""
    if part := inputs.models[member.model].part(tensor.name):
        return part
    is_base = member.relative or member.entry is inputs.reference_model.tensors.get(tensor.name)
    return None if is_base else member.entry


def _as_factors(tensor: TensorPlan, module: Module) -> TensorPlan:
    """Return the plan for a tensor whose merged update is factored.

    Where all updates are factors that come in, the values of the base are not needed, and not read.
    """
    relative = all(member.relative for member in tensor.inputs)
    return replace(tensor, module=module, origin=None if relative else tensor.origin)


def _module(part: LowRankPart) -> Module:
    return Module(part.kind, part.transposed and part.kind != "embedding", part.kernel)


def _table(tensor: TensorPlan, inputs: Inputs) -> Input | None:
    """Return the first table that an adapter has saved beside its factors, where there is no base."""
    if inputs.reference_model.has_values:  # with which tables were compared: those that differ are no factors
        return None
    tables = saved_tables(tensor, inputs.models)
    return next((replace(own, entry=entry) for own, entry in tables if entry is not None), None)


def saved_tables(
    tensor: TensorPlan, models: Sequence[Checkpoint]
) -> Iterator[tuple[Input, TensorEntry | None]]:
    """Yield the table that the adapter of each input has saved beside its factors, or None for none."""
    for member in tensor.inputs:
        part = models[member.model].part(tensor.name)
        yield member, None if part is None else saved_table(part)


def tied_to_heads(
    tensors: Sequence[TensorPlan], inputs: Inputs, tied: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return the embeddings that an adapter changes together with a head that the base ties to them.

    So do new values of a parameter in `tied`, whose other names have the same values in all models: with them
    stand these names, which PEFT looks for, too. So do factors that it trained for both; where there is no
    base, the adapters that come in tell.
    """
    trained = {
        name
        for model in inputs.models
        if model.adapter is not None and model.adapter.config.get("ensure_weight_tying")
        for name in model.adapter.parts
    }
    found: dict[str, tuple[str, ...]] = {}
    for tensor in tensors:
        if tensor.rows:  # which PEFT trains of a head that is tied to them, too
            continue
        if tensor.action == "merge" and tensor.module is None and tensor.name in tied:
            found[tensor.name] = tied[tensor.name]
        elif tensor.action == "merge" and tensor.module is not None and tensor.name in trained:
            is_embedding = tensor.module.kind == "embedding" and not inputs.reference_model.has_values
            if tensor.name in tied or is_embedding:
                found[tensor.name] = ()
    return found


def _problems(planned: Sequence[TensorPlan], packed: Sequence[str]) -> list[Problem]:
    """Return that an adapter cannot hold some tensor, or that there is none for it to hold."""
    if packed:
        hint = "write a checkpoint (output: {as: checkpoint})"
        what = f"the portable form of an adapter has no place for packed experts: {few(packed)}"
        return [Problem(what, "output", hint)]
    if not any(tensor.action == "merge" and not tensor.rows for tensor in planned):
        return [Problem("no model changes a matrix: there is nothing for an adapter to hold", "output")]
    return []


def _replaced_modules(inputs: Inputs) -> set[str]:
    """Return the tensors that adapters replace, of modules of which they replace all."""
    replaced = {name for model in inputs.models if model.adapter for name in model.adapter.replaced}
    others = {name.rpartition(".")[0] for name in inputs.reference_model.tensors.keys() - replaced}
    return {name for name in replaced if name.rpartition(".")[0] not in others}


def lora_keys(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> dict[str, LoraKeys] | None:
    """Return the keys of a LoRA file like those that come in, or None where PEFT's form is written.

    Each parameter has the keys of the first file that has it; one that has rows of a map in a file has none.
    """
    keys: dict[str, LoraKeys] = {}
    for model in reversed(models):
        if model.adapter is None or not is_of_pipeline(model.adapter.form):
            continue
        for name, part in model.adapter.parts.items():
            if isinstance(part, LowRankPart) and part.rows is None:
                alpha = part.alpha.name if part.alpha else None
                keys[name] = LoraKeys(part.right_entry.name, part.left_entry.name, alpha)
    merged = {tensor.name for tensor in tensors if tensor.action == "merge"}
    return keys if merged <= keys.keys() else None


def adapter_file(tensors: Sequence[TensorPlan], models: Sequence[Checkpoint]) -> str:
    """Return the name of the file that the merged updates go into."""
    return f"{ADAPTER_STEM if lora_keys(tensors, models) is None else LORA_STEM}.safetensors"


def stores_transposed(base: Checkpoint) -> bool:
    """Return whether the base stores its linear maps as [in, out], as GPT-2 does; their biases tell."""
    votes = 0
    for name, entry in base.tensors.items():
        bias = base.tensors.get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and len(entry.shape) == 2 and entry.shape[0] != entry.shape[1]:
            votes += (bias.shape == entry.shape[1:]) - (bias.shape == entry.shape[:1])
    return votes > 0
