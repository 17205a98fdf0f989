"""The sum Φ of all tasks' moments, where the moments themselves are not kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

from submerge.algebra import BlockMoment, Moment, TriangleMoment
from submerge.continual._manifest import FileRecord
from submerge.continual._state_folder import StateFolder
from submerge.continual._stored_task import add_moment, stored_moment
from submerge.continual._tensor_file import TensorFileWriter
from submerge.errors import Problem, RequestError, few
from submerge.store import FileTable

__all__ = ["RunningSum"]

INPUTS = "inputs"


class RunningSum:
    """Reads the sum of a state, and writes another one, input by input; a context manager.

    `inputs` gives for each linear map the first of those with the same inputs, as tasks have it: one sum
    serves all maps of an input as long as the tasks adapt the same ones.
    """

    def __init__(self, folder: StateFolder, record: FileRecord | None, out: Path | None = None) -> None:
        self._folder = folder
        self._table = FileTable()
        self._entries, metadata = folder.entries(record, self._table) if record else ({}, {})
        self.inputs: Mapping[str, str] = json.loads(metadata.get(INPUTS, "{}"))
        self._file = TensorFileWriter(out or folder.path, "moments")

    def __enter__(self) -> RunningSum:
        return self

    def __exit__(self, *error: object) -> None:
        self._table.close()
        self._file.__exit__(*error)

    def check_inputs(self, inputs: Mapping[str, str], whose: str) -> None:
        """Take up the inputs of a task; raise `RequestError` where the sum is of others."""
        self.inputs = self.inputs or inputs
        if differing := sorted(set(self.inputs.items()) ^ set(inputs.items())):
            what = f"{whose} adapts other linear maps than the tasks before: {few(dict(differing))}"
            hint = "begin a state with --keep full, where each task has moments of its own"
            raise RequestError(Problem(what, str(self._folder.path), hint))

    def add(self, name: str, moment: Moment) -> None:
        """Add the moment of an input to the sum."""
        self.put(name, [*([self.sum(name)] if self._entries else []), moment])

    def subtract(self, name: str, moment: Moment) -> None:
        """Take the moment of an input, as it was measured again, out of the sum."""
        negative = moment.scaled(-1)
        assert isinstance(negative, (BlockMoment, TriangleMoment))
        self.put(name, [self.sum(name), replace(negative, count=-moment.count)])

    def put(self, name: str, moments: Sequence[Moment]) -> None:
        """Write the sum of moments as that of an input."""
        add_moment(self._file, name, reduce(lambda total, moment: total.added(moment), moments))

    def sum(self, name: str) -> Moment:
        """Return the sum of an input as the state has it, in the dtype that it is stored in.

        In float32 a sum of two is rounded once, as it would be to be stored.
        """
        return stored_moment(self._entries, name, self._table, as_stored=True)

    def finish(self) -> FileRecord:
        """Write the new sum, and return its file."""
        return self._file.finish({INPUTS: json.dumps(self.inputs, sort_keys=True)})
