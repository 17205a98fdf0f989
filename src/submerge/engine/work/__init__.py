"""The work on one tensor: reading, computing and writing its ranges, in threads or processes."""

from submerge.engine.work._adapter_edit import patches_of
from submerge.engine.work._adapter_job import AdapterJob
from submerge.engine.work._forked import can_fork, run_forked
from submerge.engine.work._job import Job, Task, count_nonfinite, ranges
from submerge.engine.work._matrix_job import MatrixJob
from submerge.engine.work._meter import Meter
from submerge.engine.work._record import TaskRecord, tally
from submerge.engine.work._threads import run_jobs
from submerge.engine.work._workspace import Workspace

__all__ = [
    "AdapterJob",
    "Job",
    "MatrixJob",
    "Meter",
    "Task",
    "TaskRecord",
    "Workspace",
    "can_fork",
    "count_nonfinite",
    "patches_of",
    "ranges",
    "run_forked",
    "run_jobs",
    "tally",
]
