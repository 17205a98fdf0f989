"""Files whose reads are counted, for what is computed from them as it is read."""

from __future__ import annotations

from submerge.engine.work._meter import Meter
from submerge.store import FileTable, Source, TensorEntry

__all__ = ["MeteredTable"]


class MeteredTable(FileTable):
    """The open files of another table; what is read of them is counted by a meter."""

    def __init__(self, table: FileTable, meter: Meter) -> None:
        super().__init__()
        self._table, self._meter = table, meter

    def source(self, entry: TensorEntry) -> Source:  # type: ignore[override] # one that is counted
        """Return the source of a tensor that lies in a file."""
        return self._meter.source(self._table.source(entry))
