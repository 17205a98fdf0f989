"""The bank of a composed model: what is each specialist's own, and what tokens of its modality run with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from submerge.engine.output._bank import file_source, parameter_values, trained_values
from submerge.engine.output._records import Records
from submerge.engine.output._same_values import SameValues
from submerge.engine.plan import MergePlan, SpecialistPlan, TensorPlan, is_plain, stream_model
from submerge.store import (
    Adapter,
    BankParts,
    BankTensor,
    FileTable,
    LowRankPart,
    MemorySource,
    Source,
    TensorEntry,
    module_key,
)

__all__ = ["composed_bank"]


def composed_bank(plan: MergePlan, parts: BankParts, records: Records) -> Iterator[BankTensor]:
    """Yield the tensors of a composed model's bank; T is a tensor's name, n the number of a specialist.

    `modules.n.NAME` is a tensor of a specialist's own. `streams.n.T.values` is all of a parameter as the
    tokens of its modality have it, `streams.n.T.left` [m, r] and `.right` [r, n] are the factors of its
    update against the base's values: W_n = W_0 + left · right; of specialists that share their parts n is the
    first. Where text has others, W_0 are `base.T`, or
    follow from the merged update, `merged.T.left` and `.right`: W_0 = W − left · right. What is not there is
    W_0 itself.
    """
    assert plan.composition is not None
    for number, own in plan.composition.stored.items():
        for name in own.modules:
            owner = plan.models[own.owner(name, plan.models)]
            yield trained_values(module_key(number, name), owner, name)
    if plan.composition.has_streams:
        streams = _Streams(plan, SameValues(plan, records), parts)
        for index, tensor in enumerate(plan.tensors):
            if tensor.has_streams and tensor.action == "merge" and not tensor.is_copy:
                yield from streams.of(index, tensor)


@dataclass(frozen=True)
class _Streams:
    """Makes the bank's tensors of one parameter of the language model after the other."""

    plan: MergePlan
    same: SameValues
    parts: BankParts

    def of(self, index: int, tensor: TensorPlan) -> Iterator[BankTensor]:
        """Yield what the streams need of a parameter, and of its base's values where they need those."""
        assert self.plan.composition is not None
        needs_base = False
        for number, own in self.plan.composition.stored.items():
            of_stream = list(self._stream(f"streams.{number}.{tensor.name}", own, index, tensor))
            yield from of_stream
            needs_base |= not any(item.name.endswith(".values") for item in of_stream)
        if needs_base and not self.same.text_is_base(index):
            yield from self._base(index, tensor)

    def _base(self, index: int, tensor: TensorPlan) -> Iterator[BankTensor]:
        """Yield the base's values of a parameter, or the factors that they follow from."""
        factors = self.parts.entries(index)
        for side, entry in sorted(factors.items()):
            yield BankTensor(f"merged.{tensor.name}.{side}", entry, file_source(entry))
        if not factors:
            yield parameter_values(f"base.{tensor.name}", self.plan.inputs.reference_model, tensor.name)

    def _stream(self, key: str, own: SpecialistPlan, index: int, tensor: TensorPlan) -> Iterator[BankTensor]:
        """Yield what one specialist's stream has for a parameter: values, factors, or nothing."""
        place, name, base = own.specialist, tensor.name, self.plan.inputs.reference_model
        model = stream_model(place, self.plan.models)
        is_base = self.same.specialist_is_base(index, place.model)
        if model.adapter and name in model.adapter.replaced:
            is_base = False
        part = model.part(name)
        if model.adapter is None or part is None:
            if not is_base:
                yield parameter_values(f"{key}.values", model, name)
        elif is_base and isinstance(part, LowRankPart) and is_plain(part, tensor):
            yield from _factors(key, model.adapter, name, tensor.shape, part.rank)
        else:
            yield parameter_values(f"{key}.values", base if is_base else model, name, model)


def _factors(
    key: str, adapter: Adapter, name: str, shape: tuple[int, ...], rank: int
) -> Iterator[BankTensor]:
    """Yield the factors of an adapter's update, in float32 with the scale in the left one."""
    for side, (place, sides) in {"left": (0, (shape[0], rank)), "right": (1, (rank, shape[1]))}.items():

        def opened(table: FileTable, place: int = place) -> Source:
            return MemorySource(adapter.factors(name, table)[place].float())

        entry = TensorEntry.in_memory(name, "F32", sides)
        yield BankTensor(f"{key}.{side}", entry, opened, adapter.label)
