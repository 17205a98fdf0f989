"""All files of a checkpoint's folder but its weights, and what says how it was made."""

from __future__ import annotations

from pathlib import Path

from submerge.engine.output._modality_files import ModalityFiles, write_ends, write_modality_files
from submerge.engine.output._side_files import write_side_files
from submerge.engine.output._vocabulary_files import write_vocabulary_files
from submerge.engine.plan import MergePlan, SpecialistPlan
from submerge.store import write_chat_template

__all__ = ["write_checkpoint_files"]


def write_checkpoint_files(plan: MergePlan, folder: Path) -> None:
    """Write the files that the plan's models bring, the configuration, the tokenizer, and the index."""
    tokens, composition = plan.tokens, plan.composition
    write_side_files(plan, folder)
    if tokens and tokens.vocabulary:
        write_vocabulary_files(tokens.vocabulary, plan.inputs.reference, folder)
    if tokens:
        write_ends(tokens.ends, folder)
    if composition is not None:
        files = [_modality_files(own, plan) for own in composition.specialists]
        write_modality_files(composition.tokens, files, folder)
    if tokens and tokens.chat_template is not None:
        write_chat_template(folder, tokens.chat_template)


def _modality_files(own: SpecialistPlan, plan: MergePlan) -> ModalityFiles:
    model = plan.models[own.specialist.model]
    return ModalityFiles(own.modality, model.path, model.side_files, model.config or {})
