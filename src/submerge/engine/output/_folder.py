"""The output folder: built beside its place, given its name only when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submerge._version import __version__
from submerge.engine.output._card import model_card
from submerge.engine.plan import MergePlan
from submerge.errors import Problem, RequestError, WorkError
from submerge.recipe import to_mergekit
from submerge.store import (
    DIGEST,
    JOURNAL,
    MANIFEST,
    BankParts,
    Journal,
    Manifest,
    digest,
    dtype_named,
    file_identity,
    index_json,
    preallocate,
    sync_file,
    sync_folder,
    untied,
)

__all__ = ["Output", "check_target"]

SUFFIX = ".incomplete"
REPLACED = ".replaced"


def check_target(plan: MergePlan, out: Path, overwrite: bool) -> None:
    """Raise `RequestError` if `out` must not be written: it holds something, or is one of the inputs."""
    hint = "choose another folder"
    try:
        target = out.resolve()
        present = target.exists()
        held = [path.name for path in target.iterdir()] if target.is_dir() else []
    except (OSError, RuntimeError) as error:  # a name too long, a closed folder, links in a circle
        reason = getattr(error, "strerror", None) or error
        raise RequestError(Problem(f"the output cannot be looked at ({reason})", str(out), hint)) from error
    problems = []
    places: dict[Path, str] = {}
    for model in plan.models:
        for path in model.places:
            places.setdefault(path.resolve(), model.label)
    for place, label in places.items():
        family = {place, *place.parents}
        if place in target.parents or target in family or target.parent / (target.name + SUFFIX) in family:
            what = f"the output would lie in, or over, the input {label or place}"
            problems.append(Problem(what, str(out), hint))
    if not problems and present and not target.is_dir():
        problems.append(Problem("the output exists and is no folder", str(out), hint))
    elif not problems and target.is_mount():
        what = "the output is a mount point, which cannot take a finished folder's place"
        problems.append(Problem(what, str(out), "name a folder inside it"))
    elif not problems and held:
        problems = (
            _cannot_replace(plan, target, held)
            if overwrite
            else [Problem("the output exists and is not empty", str(out), f"{hint}, or allow --overwrite")]
        )
    if problems:
        raise RequestError(problems)


def _cannot_replace(plan: MergePlan, target: Path, held: Sequence[str]) -> list[Problem]:
    """Return why --overwrite must leave a folder alone: what would be lost may be more than a model."""
    hint = "choose another folder, or remove this one yourself"
    if not any(name in (MANIFEST, "config.json") or name.endswith(".safetensors") for name in held):
        return [Problem("the folder to replace holds no model", str(target), hint)]
    if plan.recipe.path is not None and target in plan.recipe.path.resolve().parents:
        return [Problem("the folder to replace holds the recipe", str(target), hint)]
    old = target.with_name(target.name + REPLACED)
    if os.path.lexists(old):
        what = "what an earlier --overwrite set aside is still there"
        return [Problem(what, str(old), "look whether you need it, then remove it")]
    return []


class Output:
    """The unfinished folder `OUT.incomplete`: shards with their sizes reserved, and the journal."""

    def __init__(self, plan: MergePlan, out: Path, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready, or take up the one that an earlier run left.

        Raises `RequestError` where it is not ours to take, `WorkError` where the disk refuses.
        """
        self.plan = plan
        self.overwrite = overwrite
        self.out = out.resolve()
        self.folder = self.out.with_name(self.out.name + SUFFIX)
        self.made_from = fingerprint(plan)
        head = {"submerge": __version__, "plan": self.made_from}
        try:
            resume = resume and (self.folder / JOURNAL).is_file()
            if not resume:
                self._discard()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(
                f"{self.folder}: cannot be made ({error.strerror}) — choose another folder"
            ) from error
        self.journal = Journal(self.folder, head, resume=resume)
        try:
            self._reserve()
        except WorkError:
            if not resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.journal.close()
            raise

    def _discard(self) -> None:
        """Remove what an earlier run left, if it is clearly of our making."""
        if not os.path.lexists(self.folder):
            return
        ours = self.folder.is_dir() and not self.folder.is_symlink()
        if not ours or (any(self.folder.iterdir()) and not (self.folder / JOURNAL).is_file()):
            what = "something of this name exists that no merge made"
            raise RequestError(Problem(what, str(self.folder), "remove it, or choose another output"))
        held = Journal(self.folder, {}, resume=False)  # refuses while another run holds it
        try:
            shutil.rmtree(self.folder)
        finally:
            held.close()

    def _reserve(self) -> None:
        for shard in self.plan.shards:
            path = self.folder / shard.file
            if not (path.is_file() and path.stat().st_size == shard.size):
                preallocate(self.folder, shard)
                self.journal.lines.clear()  # a shard is new: nothing that was written counts

    def check_inputs(self) -> None:
        """Raise `WorkError` if an input is not what it was when the run began."""
        if fingerprint(self.plan) != self.made_from:
            raise WorkError("the inputs' files changed while they were read — start again, without --resume")

    def finish(self, manifest: Manifest) -> None:
        """Add every other file, flush all to disk, and give the folder its name."""
        plan = self.plan
        try:
            as_adapter = plan.recipe.output.form == "adapter"
            if not as_adapter:
                self._carry()
            index = None if as_adapter else index_json(plan.shards)
            if index is not None:
                stem = plan.shards[0].file.partition("-00001-of-")[0]
                (self.folder / f"{stem}.safetensors.index.json").write_bytes(index)
            self._write(MANIFEST, manifest.text)
            self._write("README.md", self._card())
            theirs = to_mergekit(plan.recipe)
            if theirs is not None:
                self._write("mergekit_config.yml", theirs)
            BankParts(self.folder).remove()  # the bank has taken them in
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and path.name != JOURNAL:
                    sync_file(path)
            sync_folder(self.folder)
            self._rename()
            (self.out / JOURNAL).unlink()  # last, so that --resume can take up all that may fail above
            self.journal.close()
        except OSError as error:
            where = error.filename or self.folder
            raise WorkError(
                f"{where}: finishing failed ({error.strerror}) — mend this, then go on with --resume"
            ) from error

    def _rename(self) -> None:
        """Give the folder its name; a folder that it replaces is set aside until it has it."""
        old = self.out.with_name(self.out.name + REPLACED)
        replaces = self.overwrite and self.out.is_dir() and any(self.out.iterdir())
        if replaces:
            os.rename(self.out, old)
        try:
            os.rename(self.folder, self.out)
        finally:
            if replaces and not self.out.exists():
                os.rename(old, self.out)
        sync_folder(self.out.parent)
        if replaces:
            shutil.rmtree(old, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        # paths may hold bytes that are no UTF-8; in JSON the escape means the same
        (self.folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _carry(self) -> None:
        """Copy the side files, bytes as they are: the tokenizer's from its model, others from the donor."""
        plan = self.plan
        donor = plan.models[plan.donor]
        for folder, relative in plan.carried:
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / relative, target)
        dtype = dtype_named(plan.recipe.out_dtype or plan.recipe.dtype or "")
        if donor.config is not None:
            config = donor.config if dtype is None else _with_dtype(donor.config, DTYPE_NAMES[dtype])
            config = untied(config) if plan.unties else config
            if config != donor.config:
                self._write("config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _card(self) -> str:
        recipe = self.plan.recipe
        return model_card(
            name=self.out.name,
            method=recipe.method.title,
            source=recipe.method.source,
            models=[entry.model for entry in recipe.models],
            base=recipe.base,
            fetched=[model.label for model in self.plan.models if model.revision],
            recipe=recipe.text,
            adapter=recipe.output.form == "adapter",
            version=__version__,
            tasks=[task.name for task in self.plan.gate.tasks] if self.plan.gate else (),
        )


DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with its dtype, and that of its parts, set; `torch_dtype` is the older spelling."""
    result = {
        key: dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else _with_dtype(value, dtype)
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
    if "architectures" in result and not {"dtype", "torch_dtype"} & set(result):
        result["dtype"] = dtype
    return result


def fingerprint(plan: MergePlan) -> str:
    """Return a digest of all that the output's bytes depend on, files by size and time of change."""
    try:
        read = {file for model in plan.models for file in model.files}
        tasks = plan.gate.tasks if plan.gate else ()
        read |= {entry.file for task in tasks for entry in task.head.values() if entry.file}
        files = {str(file): file_identity(file) for file in sorted(read)}
    except OSError as error:
        raise WorkError(f"{error.filename}: cannot be read any more ({error.strerror})") from error
    described: dict[str, Any] = {
        "recipe": plan.recipe.resolved(),
        "models": [(model.label, model.revision) for model in plan.models],
        "inputs": files,
        "shards": [digest(shard.header) for shard in plan.shards],
        "files": [shard.file for shard in plan.shards],
        "copies": {tensor.name: tensor.parameter for tensor in plan.tensors if tensor.is_copy},
    }
    if views := [(model.label, repr(model.views)) for model in plan.models if model.views]:
        described["views"] = views
    text = json.dumps(described, sort_keys=True, default=str)
    return f"{DIGEST}:{digest(text.encode())}"
