"""Checks of a merged folder: is it what the merge wrote, and is it a whole model?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from submerge.deferred import quietly, torch
from submerge.engine.output._checks import idle_models, split_copies, unchanged
from submerge.engine.output._folder import MANIFEST
from submerge.engine.plan import beyond_rows, told_beyond, torch_dtype
from submerge.engine.work import DIGEST, count_nonfinite, host_bytes, joined
from submerge.errors import Problem, RequestError, WorkError
from submerge.store import (
    BANK,
    DTYPES,
    Adapter,
    Checkpoint,
    FileTable,
    TensorEntry,
    open_checkpoint,
    open_model,
    read_header,
)

__all__ = ["VerifyReport", "verify"]

BLOCK = 1 << 22


@dataclass
class VerifyReport:
    """What was checked of a folder, and what was found.

    Attributes:
        folder: what was checked.
        tensors: how many were read.
        bytes: of them.
        nonfinite: for a tensor, how many values are NaN or Inf.
        problems: what is wrong; empty for a sound folder.
        skipped: what was not checked, and why.
        loaded: the class of transformers that loaded the folder.

    Examples:
        >>> import submerge
        >>> report = submerge.merge("recipe.yaml", "merged")
        >>> found = submerge.verify("merged")
        >>> found.sound, found.tensors, found.loaded
        (True, 39, 'LlamaForCausalLM')
    """

    folder: Path
    tensors: int = 0
    bytes: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    loaded: str = ""

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {**vars(self), "folder": str(self.folder), "sound": self.sound}


def verify(folder: str | Path, *, base: str | None = None, load: bool = True) -> VerifyReport:
    """Check a merged folder against its submerge.json and its base; return what was found.

    Names, shapes and dtypes against the manifest and against the base (the recipe's, where it can be
    opened, or `base`); that something changed, and that every model took part; that copies which the
    configuration ties are equal; token ids against the rows of the embedding; every tensor's digest; NaN and
    Inf (a problem unless the merge allowed them); and, with `load`, that transformers loads it with no weight
    missing or left over.

    Args:
        folder: what a merge wrote.
        base: the model to compare with, in the place of the recipe's.
        load: whether to load it with transformers.

    Raises:
        RequestError: the folder is not one that Submerge wrote.

    Examples:
        >>> import submerge
        >>> report = submerge.merge("recipe.yaml", "merged")
        >>> submerge.verify("merged", load=False).problems
        []
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    report = VerifyReport(folder)
    as_adapter = manifest["recipe"].get("output", {}).get("as") == "adapter"
    try:
        model = _adapter(folder) if as_adapter else open_checkpoint(str(folder.resolve()))
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return report
    _names(model, manifest, report)
    report.problems += idle_models(manifest)
    if as_adapter:
        _values(model, manifest, report)
        report.skipped.append("names against the base: an adapter has its own")
        return report
    report.problems += split_copies(model, manifest, ask=load)
    bank = _bank(folder, manifest, report)
    _base(model, base or manifest["recipe"].get("base_model"), base is not None, manifest, report)
    _tokens(model, manifest, report)
    _values(model, manifest, report)
    if bank is not None:
        _values(bank, {**manifest, "tensors": manifest["bank"]["tensors"]}, report)
    if load:
        _load(folder, model, report)
    else:
        report.skipped.append("loading: not asked for")
    return report


def _adapter(folder: Path) -> Checkpoint:
    """Return the tensors of a folder's adapter, whose configuration must be readable, too."""
    opened = open_model(str(folder.resolve()), root=folder, adapter=True)
    assert isinstance(opened, Adapter)
    tensors = read_header(opened.files[0]).entries
    return Checkpoint(opened.label, opened.path, None, tensors, {})


def _bank(folder: Path, manifest: Mapping[str, Any], report: VerifyReport) -> Checkpoint | None:
    """Return the bank of a kept gate, if the folder has one, after comparing its names with the manifest."""
    if "gate" not in manifest:
        return None
    told = manifest.get("bank", {}).get("tensors")
    if not isinstance(told, dict) or not all(map(_is_line, told.values())):
        raise RequestError(Problem("the file is damaged", str(folder / MANIFEST), "merge again"))
    try:
        tensors = read_header(folder / BANK).entries if told else {}
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return None
    bank = Checkpoint(BANK, folder, None, tensors, {})
    _names(bank, {"tensors": told}, report)
    return bank


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["recipe"], dict) or not all(map(_is_line, found["tensors"].values())):
            raise ValueError
        if not isinstance(found.get("beyond_rows", []), list):
            raise ValueError
    except OSError as error:
        hint = "name a folder that `submerge merge` made"
        raise RequestError(
            Problem(f"there is no {MANIFEST} ({error.strerror})", str(folder), hint)
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RequestError(Problem("the file is damaged", str(path), "merge again")) from error
    return dict(found)


def _is_line(line: Any) -> bool:
    """Return whether this is what a manifest says of one tensor, as far as `verify` reads it."""
    return (
        line["dtype"] in DTYPES
        and isinstance(line["shape"], list)
        and len(line[DIGEST]) == 32
        and (line.get("block", 1) > 0)
    )


def _names(model: Checkpoint, manifest: Mapping[str, Any], report: VerifyReport) -> None:
    told = manifest["tensors"]
    for name in sorted(told.keys() - model.tensors.keys()):
        report.problems.append(f"{name}: missing from the weight files")
    for name in sorted(model.tensors.keys() - told.keys()):
        report.problems.append(f"{name}: not a tensor that the merge wrote")
    for name, entry in model.tensors.items():
        line = told.get(name)
        if line and (line["dtype"], line["shape"]) != (entry.dtype, list(entry.shape)):
            report.problems.append(f"{name}: is {entry.dtype} {list(entry.shape)}, not as written")


def _base(
    model: Checkpoint, spec: str | None, named: bool, manifest: Mapping[str, Any], report: VerifyReport
) -> None:
    if spec is None:
        report.skipped.append("names against the base: the merge had none")
        return
    if not named and not Path(spec).exists():  # never fetch a model only to look at its names
        report.skipped.append(f"names against the base: {spec} is not here (name it with --base)")
        return
    try:
        base = open_checkpoint(spec, download=False)
    except (RequestError, WorkError) as error:
        if named:
            raise
        report.skipped.append(
            f"names against the base: {spec} cannot be opened ({str(error).splitlines()[0]})"
        )
        return
    new = {name for name, line in manifest["tensors"].items() if line.get("new")}
    for name in sorted(base.tensors.keys() ^ model.tensors.keys() - new):
        where = "the base" if name in base.tensors else "the output"
        report.problems.append(f"{name}: only in {where}")
    for name in sorted(base.tensors.keys() & model.tensors.keys()):
        if base.tensors[name].shape != model.tensors[name].shape:
            report.problems.append(f"{name}: the base's shape is {list(base.tensors[name].shape)}")
    if not base.pending:
        report.problems += unchanged(model, base, manifest)


def _tokens(model: Checkpoint, manifest: Mapping[str, Any], report: VerifyReport) -> None:
    """Note tokens that the embedding has no rows for; those of the base itself were so before."""
    try:
        beyond, rows = beyond_rows(model)
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return
    published = manifest.get("beyond_rows", [])
    if new := {token: place for token, place in beyond.items() if token not in published}:
        report.problems.append(told_beyond(new, rows))
    elif beyond:
        report.skipped.append(f"{told_beyond(beyond, rows)}, as in the base")


def _values(model: Checkpoint, manifest: Mapping[str, Any], report: VerifyReport) -> None:
    allowed = manifest.get("nonfinite", {})
    with FileTable() as table:
        for name, entry in model.tensors.items():
            line = manifest["tensors"].get(name, {})
            digest, bad = _read(entry, line.get("block"), model, table)
            report.tensors += 1
            report.bytes += entry.nbytes
            if line and digest != line[DIGEST]:
                report.problems.append(
                    f"{name}: the values are not those that were written (in {entry.file})"
                )
            if bad:
                report.nonfinite[name] = bad
                if not any(name in (told, *_factors(told)) for told in allowed):
                    report.problems.append(f"{name}: {bad} values are NaN or Inf")


def _factors(name: str) -> list[str]:
    """Return the keys of an adapter's factors of a parameter."""
    module = f"base_model.model.{name.removesuffix('.weight')}"
    return [
        f"{module}.{role}"
        for role in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
    ]


def _read(entry: TensorEntry, block: int | None, model: Checkpoint, table: FileTable) -> tuple[str, int]:
    """Return a tensor's digest, by the blocks that the manifest names, and its count of NaN and Inf."""
    size = DTYPES[entry.dtype].itemsize
    per_block = (block or max(1, entry.nbytes)) // size
    source = model.source(entry.name, table)
    dtype = torch_dtype(entry.dtype)
    digests, bad = [], 0
    for start in range(0, max(1, entry.numel), max(1, per_block)):
        stop = min(entry.numel, start + per_block)
        whole = xxhash.xxh3_128()
        for at in range(start, stop, BLOCK):
            values = torch.empty(min(BLOCK, stop - at), dtype=dtype)
            view = host_bytes(values)
            source.read(at, values.numel(), view)
            whole.update(view)
            if dtype.is_floating_point and not torch.isfinite(values.sum(dtype=torch.float32)):
                bad += count_nonfinite(values)
        digests.append(whole.hexdigest())
    return joined(digests), bad


def _load(folder: Path, model: Checkpoint, report: VerifyReport) -> None:
    """Load with transformers, as a user would, and note weights that it misses or does not know."""
    names = (model.config or {}).get("architectures") or []
    try:
        import transformers
    except ImportError:
        report.skipped.append('loading: transformers is not installed — pip install "submerge[models]"')
        return
    kind = getattr(transformers, str(names[0]), None) if names else None
    if kind is None:
        report.skipped.append("loading: config.json names no architecture that transformers has")
        return
    try:
        with quietly(transformers.logging):
            _, info = kind.from_pretrained(
                folder, dtype="auto", output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        report.problems.append(f"transformers cannot load it as {names[0]}: {error}")
        return
    for key, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        if found := sorted(map(str, info.get(key) or ())):
            report.problems.append(f"transformers finds weights {what}: {', '.join(found[:5])}")
    if found := sorted(map(str, info.get("unexpected_keys") or ())):
        report.skipped.append(f"transformers ignores these tensors: {', '.join(found[:5])}")
    report.loaded = str(names[0])
