"""A model that grows, task after task: a state on disk from which the merge of its tasks is exported.

state      Continual                        add, remove, export, status, join
           MeasuredTask                     moments of a task that was run elsewhere
figures    StateStatus, ExportReport        what is told of them
"""

from submerge.continual._continual import Continual
from submerge.continual._export import ExportReport
from submerge.continual._manifest import StateManifest, StateOptions, TaskRecord
from submerge.continual._measure import MeasuredTask
from submerge.continual._status import StateStatus

__all__ = [
    "Continual",
    "ExportReport",
    "MeasuredTask",
    "StateManifest",
    "StateOptions",
    "StateStatus",
    "TaskRecord",
]
