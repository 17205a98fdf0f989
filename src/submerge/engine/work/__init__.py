"""The work on one tensor: passes that read, compute and write its ranges, run by threads or processes."""

from submerge.engine.work._adapter_edit import adapter_edits
from submerge.engine.work._adapter_passes import ModuleTarget, adapter_passes
from submerge.engine.work._chunk_reader import ChunkReader, ranges
from submerge.engine.work._edited_source import EditedSource
from submerge.engine.work._forked import Finished, can_fork, run_forked
from submerge.engine.work._matrix import decomposing, input_updates
from submerge.engine.work._merged_source import merged_tensors
from submerge.engine.work._meter import Meter
from submerge.engine.work._metered_table import MeteredTable
from submerge.engine.work._nonfinite import IN_OUTPUT, count_nonfinite, nonfinite_error, nonfinite_in_bytes
from submerge.engine.work._passes import Pass, Passes, Range, next_pass, run_passes, single
from submerge.engine.work._prepared import prepared
from submerge.engine.work._range_passes import range_passes
from submerge.engine.work._range_target import RangeTarget, memory_target
from submerge.engine.work._record import RangeRecord
from submerge.engine.work._threads import run_jobs, single_threaded
from submerge.engine.work._workspace import Workspace

__all__ = [
    "IN_OUTPUT",
    "ChunkReader",
    "EditedSource",
    "Finished",
    "Meter",
    "MeteredTable",
    "ModuleTarget",
    "Pass",
    "Passes",
    "Range",
    "RangeRecord",
    "RangeTarget",
    "Workspace",
    "adapter_edits",
    "adapter_passes",
    "can_fork",
    "count_nonfinite",
    "decomposing",
    "input_updates",
    "memory_target",
    "merged_tensors",
    "next_pass",
    "nonfinite_error",
    "nonfinite_in_bytes",
    "prepared",
    "range_passes",
    "ranges",
    "run_forked",
    "run_jobs",
    "run_passes",
    "single",
    "single_threaded",
]
