"""The output: its folder, its files, the runs that write them, and reports of what was done."""

from collections.abc import Mapping
from typing import Any

from submerge.engine.output._adapter_target import AdapterTarget
from submerge.engine.output._bank import write_bank_tensors
from submerge.engine.output._check_out import check_target, why_taken
from submerge.engine.output._checkpoint_files import write_checkpoint_files
from submerge.engine.output._checkpoint_target import CheckpointTarget
from submerge.engine.output._describe import describe, explain
from submerge.engine.output._estimate import compute_seconds, count_passes
from submerge.engine.output._fingerprint import fingerprint
from submerge.engine.output._folder import (
    SUFFIX,
    Output,
    check_unfinished,
    give_name,
    unfinished_folder,
)
from submerge.engine.output._modality_files import ModalityFiles, write_modality_files
from submerge.engine.output._records import Records
from submerge.engine.output._report import MergeReport, Progress
from submerge.engine.output._run import Run
from submerge.engine.output._target import OutputTarget
from submerge.engine.output._verify import verify
from submerge.engine.output._verify_report import VerifyReport
from submerge.engine.output._vllm import vllm_command

TARGETS: Mapping[str, type[OutputTarget[Any]]] = {"checkpoint": CheckpointTarget, "adapter": AdapterTarget}
"""What a recipe's `output` can be."""

__all__ = [
    "SUFFIX",
    "TARGETS",
    "AdapterTarget",
    "CheckpointTarget",
    "MergeReport",
    "ModalityFiles",
    "Output",
    "OutputTarget",
    "Progress",
    "Records",
    "Run",
    "VerifyReport",
    "check_target",
    "check_unfinished",
    "compute_seconds",
    "count_passes",
    "describe",
    "explain",
    "fingerprint",
    "give_name",
    "unfinished_folder",
    "verify",
    "vllm_command",
    "why_taken",
    "write_bank_tensors",
    "write_checkpoint_files",
    "write_modality_files",
]
