"""`submerge.load_processor`: the processor of a composed model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submerge.arguments import checked
from submerge.calibrate import count_as_model
from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError
from submerge.serving._input_names import input_names
from submerge.serving._processor import ModalityProcessor
from submerge.serving._specialist_processor import SpecialistProcessor
from submerge.store import MODALITIES, MODALITY_GATE, Manifest, load_tokenizer

__all__ = ["load_processor"]

HINT = "put its files beside the model's weights, and merge again"


@checked
def load_processor(folder: str | Path) -> ModalityProcessor:
    """Return the processor of a composed model, for texts with inputs of its modalities in any order.

    Args:
        folder: what `submerge merge` wrote of a recipe with modalities, or a `save_pretrained` of it.

    Raises:
        RequestError: the folder holds no composed model, or the processor of a specialist is not there or
            cannot be loaded.

    Examples:
        >>> import submerge
        >>> report = submerge.merge("recipe.yaml", "merged")  # of language models alone
        >>> try:
        ...     submerge.load_processor("merged")
        ... except submerge.RequestError as error:
        ...     print(error)
        merged: this is no composed model — load its tokenizer with transformers
    """
    transformers = required("transformers", "submerge.load_processor needs")
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if manifest.gate is None or manifest.gate.method != MODALITY_GATE:
        hint = "load its tokenizer with transformers"
        raise RequestError(Problem("this is no composed model", str(folder), hint))
    tasks = manifest.gate.tasks
    with quietly(transformers.logging):
        tokenizer = load_tokenizer(folder)
        specialists = [
            _specialist(transformers, folder, tokenizer, task, names)
            for task, names in zip(tasks, input_names(tasks), strict=True)
        ]
    return ModalityProcessor(tokenizer, specialists, manifest.text)


def _specialist(
    transformers: Any, folder: Path, tokenizer: Any, task: Mapping[str, Any], names: Mapping[str, str]
) -> SpecialistProcessor:
    """Return one specialist's processor.

    Its placeholder is the token of its id; a text that the recipe has for it may say more, for chats.
    """
    token = tokenizer.convert_ids_to_tokens(task["placeholder_id"])
    markup = task.get("markup") or task["placeholder"]
    if (count := markup.count(token) if token else 0) != 1:
        number = f"{count} times" if count else "no"
        what = (
            f"an input is marked by {markup!r}, which has {number} token {task['placeholder_id']} ({token})"
        )
        hint = "write 'placeholder:' with that token in the recipe, once, and merge again"
        raise RequestError(Problem(what, f"modality {task['name']}", hint))
    return SpecialistProcessor(
        name=task["name"],
        kind=task["kind"],
        placeholder=token,
        placeholder_id=task["placeholder_id"],
        processor=_own_processor(transformers, folder / MODALITIES / task["name"]),
        names=names,
        markup="" if markup == token else markup,
    )


def _own_processor(transformers: Any, folder: Path) -> Any:
    """Return a specialist's processor; raise `RequestError` where that cannot be done."""
    if not folder.is_dir():
        raise RequestError(Problem("there is no such folder, with a processor", str(folder), HINT))
    processor = _pretrained(transformers.AutoProcessor, folder, "processor")
    if not hasattr(processor, "tokenizer"):
        what = f"{type(processor).__name__} is not the processor of a multimodal model"
        raise RequestError(Problem(what, str(folder), HINT))
    count_as_model(processor, folder)
    return processor


def _pretrained(kind: Any, folder: Path, what: str) -> Any:
    """Return what an auto class of transformers loads from a folder."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        hint = "install it" if isinstance(error, ImportError) else HINT
        raise RequestError(Problem(f"the {what} cannot be loaded: {reason}", str(folder), hint)) from error
