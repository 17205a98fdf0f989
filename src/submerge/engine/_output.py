"""The output folder: built beside its place, given its name only when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from submerge._version import __version__
from submerge.engine._card import model_card
from submerge.engine._plan import MergePlan
from submerge.engine._record import DIGEST
from submerge.errors import Problem, RequestError, WorkError
from submerge.recipe import to_mergekit
from submerge.store import (
    JOURNAL,
    TOKENIZER_FILES,
    Journal,
    dtype_named,
    file_identity,
    index_json,
    preallocate,
    sync_file,
    sync_folder,
)

__all__ = ["MANIFEST", "Output", "check_target"]

MANIFEST = "submerge.json"
SUFFIX = ".incomplete"


def check_target(plan: MergePlan, out: Path, overwrite: bool) -> None:
    """Raise `RequestError` if `out` must not be written: it holds something, or is one of the inputs."""
    target = out.resolve()
    problems = []
    for model in plan.models:
        place = model.path.resolve()
        if target == place or place in target.parents or target in place.parents:
            what = f"the output would lie in, or over, the input {model.label}"
            problems.append(Problem(what, str(out), "choose another folder"))
    if not problems and (target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite)):
        hint = "choose another folder" if target.is_file() else "choose another folder, or allow --overwrite"
        problems.append(Problem("the output exists and is not empty", str(out), hint))
    if problems:
        raise RequestError(problems)


class Output:
    """The unfinished folder `OUT.incomplete`: shards with their sizes reserved, and the journal."""

    def __init__(self, plan: MergePlan, out: Path, *, resume: bool) -> None:
        """Make the folder ready, or take up the one that an earlier run left.

        Raises `RequestError` where it is not ours to take, `WorkError` where the disk refuses.
        """
        self.plan = plan
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.with_name(self.out.name + SUFFIX)
        head = {"submerge": __version__, "plan": fingerprint(plan)}
        resume = resume and (self.folder / JOURNAL).exists()
        if not resume:
            self._discard()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(
                f"{self.folder}: cannot be made ({error.strerror}) — choose another folder"
            ) from error
        self.journal = Journal(self.folder, head, resume=resume)
        try:
            self._reserve()
        except WorkError:
            self.journal.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _discard(self) -> None:
        """Remove what an earlier run left, if it is clearly of our making."""
        if not self.folder.exists():
            return
        names = {p.name for p in self.folder.iterdir()}
        if names and JOURNAL not in names:
            what = "a folder of this name exists that no merge made"
            raise RequestError(Problem(what, str(self.folder), "remove it, or choose another output"))
        Journal(self.folder, {}, resume=False).close()  # refuses while another run holds it
        shutil.rmtree(self.folder)

    def _reserve(self) -> None:
        for shard in self.plan.shards:
            path = self.folder / shard.file
            if not (path.is_file() and path.stat().st_size == shard.size):
                preallocate(self.folder, shard)
                self.journal.lines.clear()  # a shard is new: nothing that was written counts

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Add every other file, flush all to disk, and give the folder its name."""
        plan = self.plan
        try:
            self._carry()
            index = index_json(plan.shards)
            if index is not None:
                (self.folder / "model.safetensors.index.json").write_bytes(index)
            self._write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            self._write("README.md", self._card())
            theirs = to_mergekit(plan.recipe)
            if theirs is not None:
                self._write("mergekit_config.yml", theirs)
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and path.name != JOURNAL:
                    sync_file(path)
            self.journal.close()
            (self.folder / JOURNAL).unlink()
            sync_folder(self.folder)
            self._rename()
        except OSError as error:
            where = error.filename or self.folder
            raise WorkError(
                f"{where}: writing failed ({error.strerror}) — free some space, then --resume"
            ) from error

    def _rename(self) -> None:
        old = self.out.with_name(self.out.name + ".replaced")
        if self.out.exists() and any(self.out.iterdir()):
            os.rename(self.out, old)
        os.rename(self.folder, self.out)
        sync_folder(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def _carry(self) -> None:
        """Copy the side files, bytes as they are: the tokenizer's from its model, others from the donor."""
        plan = self.plan
        donor, tokens = plan.models[plan.donor], plan.models[plan.tokenizer]
        same = plan.donor == plan.tokenizer
        files = [(donor, f) for f in donor.side_files if same or f.name not in TOKENIZER_FILES]
        files += [] if same else [(tokens, f) for f in tokens.side_files if f.name in TOKENIZER_FILES]
        for model, relative in files:
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.path / relative, target)
        dtype = dtype_named(plan.recipe.out_dtype or plan.recipe.dtype or "")
        if donor.config is not None and dtype is not None:
            name = DTYPE_NAMES[dtype]
            config = _with_dtype(donor.config, name)
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
            recipe=recipe.text,
            version=__version__,
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
    described = {
        "recipe": plan.recipe.resolved(),
        "models": [
            {
                "label": model.label,
                "revision": model.revision,
                "files": {
                    str(f): file_identity(f)
                    for f in sorted({e.file for e in model.tensors.values() if e.file})
                },
            }
            for model in plan.models
        ],
        "shards": [xxhash.xxh3_128_hexdigest(shard.header) for shard in plan.shards],
        "files": [shard.file for shard in plan.shards],
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return f"{DIGEST}:{xxhash.xxh3_128_hexdigest(text.encode())}"
