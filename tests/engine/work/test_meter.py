"""What is counted of reads and writes, in this process and in those that were forked from it."""

import torch

from submerge.engine.work import Meter
from submerge.store import MemorySink, MemorySource, TensorEntry


def test_reads_and_writes_pass_through_and_are_counted() -> None:
    meter, values = Meter(), torch.arange(10.0)
    source, into = meter.source(MemorySource(values)), torch.empty(4)
    source.read(3, 4, into.view(torch.uint8).numpy().data)
    assert torch.equal(into, values[3:7])
    assert (meter.read, meter.written) == (16, 0)
    entry = TensorEntry("w", "F32", (10,), None, 0, 40)
    out = torch.zeros(10)
    meter.sink(MemorySink({"w": out})).write(entry, 2, into.view(torch.uint8).numpy().data)
    assert out.tolist() == [0, 0, 3, 4, 5, 6, 0, 0, 0, 0]
    assert (meter.read, meter.written) == (16, 16)
    assert meter.reading > 0
    assert meter.writing > 0


def test_other_processes_count_in_rows_of_their_own() -> None:
    meter, forked = Meter(), Meter()
    meter.add_read(5, 0.5)
    forked.add_read(100, 1.0)  # before it counts in the row: its parent's
    row = meter.shared()
    forked.count_in(row)
    forked.add_read(7, 0.25)
    forked.add_written(3, 0.125)
    assert (meter.read, meter.written, meter.reading, meter.writing) == (12, 3, 0.75, 0.125)
    assert forked.read == 7
