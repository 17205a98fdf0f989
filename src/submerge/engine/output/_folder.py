"""The output folder: built beside its place, given its name only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from submerge._version import __version__
from submerge.engine.output._card import model_card
from submerge.engine.output._fingerprint import fingerprint
from submerge.engine.output._text_files import write_text
from submerge.engine.plan import MergePlan
from submerge.errors import Problem, RequestError, WorkError, writing
from submerge.recipe import COEFFICIENTS, MixtureRecipe, to_mergekit, to_mergekit_moe
from submerge.store import (
    JOURNAL,
    MANIFEST,
    BankParts,
    Journal,
    Manifest,
    preallocate,
    sync_file,
    sync_folder,
    whole_file,
)

__all__ = ["REPLACED", "SUFFIX", "Output", "check_unfinished", "give_name", "unfinished_folder"]

SUFFIX = ".incomplete"
REPLACED = ".replaced"


def unfinished_folder(out: Path) -> Path:
    """Return the folder in which an output is built."""
    out = out.resolve()
    return out.with_name(out.name + SUFFIX)


def check_unfinished(folder: Path) -> None:
    """Raise `RequestError` where something lies in an unfinished folder's place that no merge made."""
    if not os.path.lexists(folder):
        return
    ours = folder.is_dir() and not folder.is_symlink()
    if not ours or (any(folder.iterdir()) and not (folder / JOURNAL).is_file()):
        what = "something of this name exists that no merge made"
        raise RequestError(Problem(what, str(folder), "remove it, or choose another output"))


def give_name(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Give a finished folder its name; with `overwrite` one that it replaces is set aside until it has it."""
    old = out.with_name(out.name + REPLACED)
    replaces = overwrite and out.is_dir() and any(out.iterdir())
    if replaces:
        os.rename(out, old)
    try:
        os.rename(folder, out)
    finally:
        if replaces and not out.exists():
            os.rename(old, out)
    sync_folder(out.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


class Output:
    """The unfinished folder `OUT.incomplete`: shards with their sizes reserved, and the journal."""

    def __init__(self, plan: MergePlan, out: Path, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready, or take up the one that an earlier run left.

        Raises `RequestError` where it is not ours to take, `WorkError` where the disk refuses.
        """
        self.plan = plan
        self.overwrite = overwrite
        self.out = out.resolve()
        self.folder = unfinished_folder(out)
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
            self._write_coefficients()
        except WorkError:
            if not resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.journal.close()
            raise

    def _discard(self) -> None:
        """Remove what an earlier run left, if it is clearly of our making."""
        check_unfinished(self.folder)
        if not self.folder.exists():
            return
        journal = Journal(self.folder, {}, resume=False)  # refuses while another run holds it
        try:
            shutil.rmtree(self.folder)
        finally:
            journal.close()

    def _reserve(self) -> None:
        for shard in self.plan.shards:
            path = self.folder / shard.file
            if not (path.is_file() and path.stat().st_size == shard.size):
                preallocate(self.folder, shard)
                self.journal.lines.clear()  # a shard is new: nothing that was written counts

    def _write_coefficients(self) -> None:
        """Write the coefficients of the merge, before any of its work, so that a resumed run has them."""
        coefficients = self.plan.recipe.coefficients
        if coefficients is None:
            return
        path = self.folder / COEFFICIENTS
        hint = "free some space"
        with writing(f"{path}: cannot be written", hint), whole_file(path, synced=True) as unfinished:
            unfinished.write_text(coefficients.text, encoding="utf-8")

    def check_inputs(self) -> None:
        """Raise `WorkError` if an input is not what it was when the run began."""
        if fingerprint(self.plan) != self.made_from:
            raise WorkError("the inputs' files changed while they were read — start again, without --resume")

    def finish(
        self,
        manifest: Manifest,
        write_side_files: Callable[[], None],
        add_files: Callable[[Path, Manifest], None] | None = None,
    ) -> None:
        """Add every other file, last those of `add_files`; flush all to disk; give the folder its name."""
        try:
            write_side_files()
            self._describe(manifest)
            if add_files is not None:
                add_files(self.folder, manifest)
            BankParts(self.folder).remove()  # the bank has taken them in
            self._flush()
            give_name(self.folder, self.out, overwrite=self.overwrite)
            (self.out / JOURNAL).unlink()  # last, so that --resume can take up all that may fail above
            self.journal.close()
        except OSError as error:
            where = error.filename or self.folder
            raise WorkError(
                f"{where}: finishing failed ({error.strerror}) — mend this, then go on with --resume"
            ) from error

    def _describe(self, manifest: Manifest) -> None:
        """Write what says how the folder was made."""
        write_text(self.folder / MANIFEST, manifest.text)
        write_text(self.folder / "README.md", self._card(manifest.is_adapter))
        name, mergekit_recipe = _for_mergekit(self.plan)
        if mergekit_recipe is not None:
            write_text(self.folder / name, mergekit_recipe)

    def _flush(self) -> None:
        """Wait until all files but the journal are on the disk."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != JOURNAL:
                sync_file(path)
        sync_folder(self.folder)

    def _card(self, is_adapter: bool) -> str:
        recipe, composition = self.plan.recipe, self.plan.composition
        return model_card(
            name=self.out.name,
            method=recipe.method.title,
            source=recipe.method.source,
            models=[entry.model for entry in recipe.models],
            base=recipe.base,
            fetched=[model.label for model in self.plan.models if model.revision],
            recipe=recipe.text,
            adapter=is_adapter,
            version=__version__,
            tasks=[task.name for task in self.plan.gate.tasks] if self.plan.gate else (),
            usage=recipe.method.gate.usage if recipe.method.gate else (),
            specialists=composition.record(self.plan.models).tasks if composition else (),
            projectors=[task.name for task in self.plan.projectors.tasks] if self.plan.projectors else (),
            licences=self.plan.licences,
        )


def _for_mergekit(plan: MergePlan) -> tuple[str, str | None]:
    """Return the name that mergekit gives its recipes, and the recipe for it, where it can do the same.

    It merges rows of classes by their place.
    """
    if isinstance(plan.recipe, MixtureRecipe):
        return "mergekit_moe_config.yml", to_mergekit_moe(plan.recipe)
    return "mergekit_config.yml", None if plan.by_class else to_mergekit(plan.recipe)
