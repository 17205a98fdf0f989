"""Ranges into a sink: what is stored, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engine.work.helpers_work import space
from submerge.algebra import Dense
from submerge.engine.work import Range, RangeRecord, RangeTarget, memory_target
from submerge.engine.work._range_log import OUTPUT, RangeLog
from submerge.methods import Merged
from submerge.store import BankParts, MemorySink, TensorEntry, byte_view, digest


def target_of(out: torch.Tensor, records: list[RangeRecord], bank: BankParts | None = None) -> RangeTarget:
    entry = TensorEntry("w", "BF16", tuple(out.shape), None, 0, 0)
    return RangeTarget(4, entry, MemorySink({"w": out}), records.append, bank=bank)


def test_values_are_rounded_stored_and_digested() -> None:
    out, records = torch.zeros(6, dtype=torch.bfloat16), list[RangeRecord]()
    target, log = target_of(out, records), RangeLog(2)
    values = torch.tensor([1.0, 2.001, -3.0, torch.nan])
    target.write(2, 6, [(values[:3].numpy(), None), (values[3:].numpy(), None)], space(), log)
    log.read(1, memoryview(b"read"))
    target.finish(Range(1, 2, 6), log)
    written = values.bfloat16()
    assert torch.equal(out[2:5], written[:3])
    (record,) = records
    assert (record.tensor, record.range, record.nonfinite) == (4, 1, {OUTPUT: 1})
    assert out[5].view(torch.int16) == 0x7FC0, "NaN is one and the same on every processor"
    assert record.output == digest(byte_view(out[2:]))
    assert record.inputs == [digest(b""), digest(b"read")]


def test_a_copy_is_digested_once() -> None:
    out, records = torch.zeros(4, dtype=torch.bfloat16), list[RangeRecord]()
    target, log = target_of(out, records), RangeLog(2, copy=True)
    data = byte_view(torch.ones(4, dtype=torch.bfloat16))
    log.read(0, data)
    target.copy(0, data)
    target.finish(Range(0, 0, 4), log, differs=[1])
    assert torch.equal(out, torch.ones(4, dtype=torch.bfloat16))
    assert records[0].output == records[0].inputs[0] == digest(data)
    assert records[0].differs == [1]


def test_in_memory_nothing_is_digested() -> None:
    out, records = torch.zeros(2, 3), list[RangeRecord]()
    target = memory_target(0, out, "F32", records.append)
    log = RangeLog(2, hashed=target.hashed)
    log.read(1, memoryview(b"read"))
    target.write(1, 6, [(np.arange(5, dtype=np.float32), None)], space(), log)
    target.finish(Range(0, 0, 6), log)
    assert out.tolist() == [[0.0, 0.0, 1.0], [2.0, 3.0, 4.0]]
    assert (records[0].output, records[0].inputs) == ("", [])


def test_what_a_gate_needs_of_a_matrix_goes_into_the_bank(tmp_path: Path) -> None:
    bank = BankParts(tmp_path)
    out, records = torch.zeros(4, dtype=torch.bfloat16), list[RangeRecord]()
    target = target_of(out, records, bank)
    merged = Merged(Dense(torch.ones(2, 2)), {"rank": 1}, {"0.left": torch.ones(2, 1)})
    target.finish(Range(0, 0, 4), RangeLog(1), merged=merged)
    assert records[0].figures == {"rank": 1}
    assert bank.holds(4, records[0].part)
    log = RangeLog(1)
    log.count(OUTPUT, 1)
    target.finish(Range(0, 0, 4), log, merged=merged)
    assert records[1].part == "", "of NaN and Inf nothing is kept"
