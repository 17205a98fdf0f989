"""Where each model's part in a tensor comes from: the model's own tensor, or the base's in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from submerge.engine.plan.tensors._findings import Finding, Findings
from submerge.engine.plan.tensors._tensor import Input
from submerge.engine.plan.tensors._tensor_rules import TensorRules
from submerge.engine.plan.tokens import token_tables
from submerge.names import layer_of
from submerge.store import Checkpoint, FileTable, LowRankPart, Part, TensorEntry, first_bytes, is_relative

__all__ = ["Members"]

_NO_VALUES = "holds no values of tensors, as of a model that was saved while its weights lay on several GPUs"
_GATHER = (
    "gather them: zero_to_fp32.py in the checkpoint of DeepSpeed, or Accelerate's merge-weights for FSDP"
)


@dataclass(frozen=True)
class Members:
    """Finds the models' parts in tensors of the reference, and notes what stands in the way.

    `lacks` has for each model the tensors that it rightly has none for, with the reason.
    """

    rules: TensorRules
    lacks: Sequence[Mapping[str, str]]
    findings: Findings

    def of_all(self, entry: TensorEntry) -> tuple[Input, ...] | None:
        """Return the part of each participant, or None after noting the problems of any."""
        members = [self.of(position, entry) for position in self.rules.inputs.participants]
        present = tuple(member for member in members if member is not None)
        return present if len(present) == len(members) else None

    def of(self, position: int, entry: TensorEntry) -> Input | None:
        """Return one model's part, or None after noting why it can have none."""
        model = self.rules.inputs.models[position]
        stored = model.tensors.get(entry.name)
        if stored is None:
            return self._of_missing(position, model, entry)
        if refusal := self._type_refusal(model, stored, entry) or self._shape_refusal(model, stored, entry):
            self.findings.add(refusal)
            return None
        return self._of_stored(position, model, stored, entry)

    def of_reference(self, entry: TensorEntry) -> Input:
        """Return the reference's own tensor, with what its adapter does to it."""
        inputs = self.rules.inputs
        return Input(inputs.reference, entry, patch=inputs.reference_model.part(entry.name) is not None)

    def alike(self, entry: TensorEntry) -> list[Input] | None:
        """Return the tensors of this name, type and shape that other participants have.

        None, after noting whose they are, where there are floats among those of this name.
        """
        inputs = self.rules.inputs
        positions = [p for p in dict.fromkeys(inputs.participants) if p != inputs.reference]
        others = [
            (position, other)
            for position in positions
            if (other := inputs.models[position].tensors.get(entry.name)) is not None
        ]
        refusals = [
            refusal
            for position, other in others
            if (refusal := self._type_refusal(inputs.models[position], other, entry))
        ]
        for refusal in refusals:
            self.findings.add(refusal)
        if refusals:
            return None
        kind = entry.dtype, entry.shape
        return [Input(position, other) for position, other in others if (other.dtype, other.shape) == kind]

    def _of_missing(self, position: int, model: Checkpoint, entry: TensorEntry) -> Input | None:
        """Return the base's tensor, where the recipe or the model's kind lets it stand in."""
        reason = self.lacks[position].get(entry.name)
        absent = entry.name in self.lacks[position] or self._is_of_no_use(model, entry)
        if not absent and self.rules.recipe.rules.missing == "refuse":
            self.findings.add_missing(position, entry.name)
            return None
        note = f"{model.label}: missing, read from the base" + (f" ({reason})" if reason else "")
        return Input(self.rules.inputs.reference, entry, note)

    def _is_of_no_use(self, model: Checkpoint, entry: TensorEntry) -> bool:
        """Return whether a task has no use for a tensor: a pooler or a tower, beside layers that it has.

        Only a gate runs tasks apart, so that what one lacks is not missing in the others.
        """
        if not (self.rules.gate and self.rules.gate.partial_models):
            return False
        layer, stacks = layer_of(entry.name), _stacks(model.tensors)
        shared = stacks & _stacks(self.rules.inputs.reference_model.tensors)
        return bool(shared) and (layer is None or layer[0] not in stacks)

    def masks(self, entry: TensorEntry) -> list[str]:
        """Return the models in which a tensor of the reference's floats is a mask, by their labels."""
        models = (self.rules.inputs.models[position] for position in self.rules.inputs.participants)
        stored = ((model.label, model.tensors.get(entry.name)) for model in models)
        return [label for label, other in stored if other is not None and _is_mask(other, entry)]

    def _type_refusal(self, model: Checkpoint, stored: TensorEntry, entry: TensorEntry) -> Finding | None:
        if stored.is_float == entry.is_float or _is_mask(stored, entry):
            return None
        reference = self.rules.inputs.reference_model.label
        what = f"tensors are {stored.dtype} here and {entry.dtype} in {reference}"
        return Finding(what, model.label, "merge models of one base", entry.name)

    def _shape_refusal(self, model: Checkpoint, stored: TensorEntry, entry: TensorEntry) -> Finding | None:
        if stored.shape == entry.shape:
            return None
        if 0 in (stored.numel, entry.numel):
            empty = model if stored.numel == 0 else self.rules.inputs.reference_model
            return Finding(_NO_VALUES, empty.label, _GATHER, entry.name)
        if self.rules.allows_other_shape(entry):
            return None
        what = f"shapes differ from {self.rules.inputs.reference_model.label}'s"
        hint = "merge models of one base, or set rules: {shape: base} to keep the base's tensor"
        if self._differs_in_token_rows(model, stored, entry):
            by_token = "tokenizer_source: union (or a model) merges rows by token, without padding"
            if self.rules.recipe.rules.vocabulary == "by-position":
                by_token += ", in the place of vocabulary: by-position"
            hint = f"{by_token}; rules: {{shape: base}} keeps the base's tensor unmerged"
        shown = f"{entry.name} ({list(stored.shape)}, there {list(entry.shape)})"
        return Finding(what, model.label, hint, shown)

    def _differs_in_token_rows(self, model: Checkpoint, stored: TensorEntry, entry: TensorEntry) -> bool:
        """Return whether a table has rows for other tokens, of which both models' tokenizers tell."""
        reference = self.rules.inputs.reference_model
        is_of_tokens = entry.name in token_tables(reference.tensors, next(iter(entry.shape), 0))
        told = model.tokenizer.complete and reference.tokenizer.complete
        return told and is_of_tokens and stored.shape[1:] == entry.shape[1:]

    def _of_stored(self, position: int, model: Checkpoint, stored: TensorEntry, entry: TensorEntry) -> Input:
        """Return the model's own tensor, and whether it is the origin with an adapter's update.

        A model under an adapter has the very entry of the reference: then the update is known without the
        values, if the adapter only adds to them, and nothing else is laid over the reference itself.
        """
        part = model.part(entry.name)
        adds = part is None or is_relative(part)
        plain_origin = self.rules.inputs.reference_model.part(entry.name) is None
        tied = model.aliases.get(entry.name)
        return Input(
            model=position,
            entry=stored,
            note=f"{model.label}: tied to {tied}" if tied else "",
            patch=part is not None,
            relative=self.rules.takes_updates and stored is entry and adds and plain_origin,
            rank=_rank(part),
            unchanged=adds
            and plain_origin
            and self.rules.compares(entry)
            and self._begins_alike(model, entry),
        )

    def _begins_alike(self, model: Checkpoint, entry: TensorEntry) -> bool:
        """Return whether the first values of a model's own tensor are the reference's."""
        reference = self.rules.inputs.reference_model
        if model.pending or reference.pending or model.tensors[entry.name].dtype != entry.dtype:
            return False
        with FileTable() as table:
            return first_bytes(model, entry.name, table) == first_bytes(reference, entry.name, table)


def _stacks(names: Iterable[str]) -> set[str]:
    """Return the prefixes of all stacks of layers."""
    return {layer[0] for name in names if (layer := layer_of(name)) is not None}


def _is_mask(one: TensorEntry, other: TensorEntry) -> bool:
    """Return whether one of two tensors is a mask of attention, [1, 1, L, L], and the other it as floats.

    GPT-2's `attn.bias` is stored as floats, bytes or booleans, by the version of transformers.
    """
    if one.shape != other.shape or len(one.shape) != 4 or one.shape[:2] != (1, 1):
        return False
    return one.is_float != other.is_float and not {"BOOL", "U8"}.isdisjoint((one.dtype, other.dtype))


def _rank(part: Part | None) -> int:
    """Return the rank of an update that is the product of two matrices; 0 where it is none."""
    is_packed = isinstance(part, LowRankPart) and bool(part.experts) and part.expert is None
    return part.rank if isinstance(part, LowRankPart) and not is_packed else 0
