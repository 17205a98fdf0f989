"""Checks of a merged folder: is it what the merge wrote, and is it a complete model?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from submerge.arguments import checked
from submerge.deferred import quietly
from submerge.engine.output._check_modalities import damaged_modalities
from submerge.engine.output._check_projectors import damaged_projectors
from submerge.engine.output._checks import (
    changed_calibration,
    changed_coefficients,
    models_without_part,
    split_copies,
    unchanged,
)
from submerge.engine.output._verify_report import VerifyReport
from submerge.engine.output._verify_values import check_dtypes, check_values
from submerge.engine.plan import beyond_rows, describe_beyond, is_feed_forward
from submerge.errors import RequestError, WorkError, first_line
from submerge.kernels import compiling_for
from submerge.names import is_buffer, layer_of, with_layer
from submerge.store import (
    BANK,
    MODALITY_GATE,
    Adapter,
    Checkpoint,
    Manifest,
    TensorRecord,
    open_checkpoint,
    open_model,
    read_header,
)

__all__ = ["verify"]


@checked
def verify(folder: str | Path, *, base: str | Path | None = None, load: bool = True) -> VerifyReport:
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
    manifest = Manifest.read(folder)
    report = VerifyReport(folder)
    try:
        model = _adapter(folder) if manifest.is_adapter else open_checkpoint(str(folder.resolve()))
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return report
    with compiling_for(sum(entry.numel for entry in model.tensors.values())):
        _check(model, manifest, report, base=None if base is None else str(base), load=load)
    return report


def _check(
    model: Checkpoint, manifest: Manifest, report: VerifyReport, *, base: str | None, load: bool
) -> None:
    folder = report.folder
    _names(model, manifest.tensors, report)
    report.problems += models_without_part(manifest)
    report.problems += changed_coefficients(folder, manifest)
    bank = _bank(folder, manifest, report)
    report.problems += damaged_modalities(folder, manifest)
    report.problems += damaged_projectors(manifest)
    report.problems += changed_calibration(folder, manifest)
    if not manifest.is_adapter:
        report.problems += split_copies(model, manifest, ask=load)
        _base(model, base or manifest.base, base is not None, manifest, report)
        _tokens(model, manifest, report)
    check_values(model, manifest.tensors, manifest.nonfinite, report)
    if bank is not None:
        check_values(bank, manifest.bank or {}, manifest.nonfinite, report)
    if manifest.is_adapter:
        report.skipped.append("names against the base: an adapter has its own")
    elif load:
        _load(folder, model, report)
    else:
        report.skipped.append("loading: not asked for")


def _adapter(folder: Path) -> Checkpoint:
    """Return the tensors of a folder's adapter, whose configuration must be readable, too."""
    opened = open_model(str(folder.resolve()), root=folder, adapter=True)
    assert isinstance(opened, Adapter)
    tensors = read_header(opened.files[0]).entries
    return Checkpoint(opened.label, opened.path, None, tensors, {})


def _bank(folder: Path, manifest: Manifest, report: VerifyReport) -> Checkpoint | None:
    """Return the bank of a gate, if the folder has one, after comparing its names with the manifest."""
    if manifest.bank is None:
        return None
    try:
        tensors = read_header(folder / BANK).entries if manifest.bank else {}
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return None
    bank = Checkpoint(BANK, folder, None, tensors, {})
    _names(bank, manifest.bank, report)
    return bank


def _names(model: Checkpoint, records: Mapping[str, TensorRecord], report: VerifyReport) -> None:
    for name in sorted(records.keys() - model.tensors.keys()):
        report.problems.append(f"{name}: missing from the weight files")
    for name in sorted(model.tensors.keys() - records.keys()):
        report.problems.append(f"{name}: not a tensor that the merge wrote")
    check_dtypes(model, records, report)


def _base(model: Checkpoint, spec: str | None, named: bool, manifest: Manifest, report: VerifyReport) -> None:
    """Compare names, shapes and values with the base's; say so where there is no base to compare with."""
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
        report.skipped.append(f"names against the base: {spec} cannot be opened ({first_line(error)})")
        return
    if manifest.is_mixture:
        report.problems += _unlike_beside_experts(model, base)
        return
    new = {name for name, record in manifest.tensors.items() if record.new}
    if manifest.stacked:
        report.problems += _unlike_layers(model.tensors.keys() - new, base.tensors)
        return
    grown = manifest.gate is not None and manifest.gate.method == MODALITY_GATE
    report.problems += _unlike(model, base, new, more_rows=grown, rows=manifest.token_rows)
    if not base.pending:
        report.problems += unchanged(model, base, manifest)


def _unlike(
    model: Checkpoint,
    base: Checkpoint,
    new: Collection[str],
    *,
    more_rows: bool = False,
    rows: int | None = None,
) -> list[str]:
    """Return which names and shapes are not the base's, but for tensors that a merge added.

    With `more_rows` tensors outside of the layers may have rows for tokens that were added, and with `rows`
    that number of them.
    """
    problems = []
    for name in sorted(base.tensors.keys() ^ model.tensors.keys() - new):
        where = "the base" if name in base.tensors else "the output"
        problems.append(f"{name}: only in {where}")
    for name in sorted(base.tensors.keys() & model.tensors.keys()):
        theirs, ours = base.tensors[name].shape, model.tensors[name].shape
        is_table = layer_of(name) is None and theirs[1:] == ours[1:]
        as_planned = is_table and (ours[:1] == (rows,) or (more_rows and theirs < ours))
        as_planned |= theirs[:-1] == (1,) and ours == (1, rows)  # a bias of logits that is one row
        if theirs != ours and not as_planned:
            problems.append(f"{name}: the base's shape is {list(base.tensors[name].shape)}")
    return problems


def _unlike_beside_experts(model: Checkpoint, base: Checkpoint) -> list[str]:
    """Return which of the base's tensors a mixture of experts lacks, or has in another shape."""
    problems = []
    for name, entry in base.tensors.items():
        own = model.tensors.get(name)
        if is_feed_forward(name) or is_buffer(name):
            continue
        if own is None:
            problems.append(f"{name}: only in the base")
        elif own.shape != entry.shape:
            problems.append(f"{name}: the base's shape is {list(entry.shape)}")
    return problems


def _unlike_layers(model: Iterable[str], base: Iterable[str]) -> list[str]:
    """Return which names of tensors are not the base's, whatever number their layers have."""
    own, theirs = (set(map(_in_first_layer, names)) for names in (model, base))
    return [
        f"{name}: only in {'the output' if name in own else 'the base'}, in any layer"
        for name in sorted(own ^ theirs)
    ]


def _in_first_layer(name: str) -> str:
    place = layer_of(name)
    return name if place is None else with_layer(name, place[0], 0)


def _tokens(model: Checkpoint, manifest: Manifest, report: VerifyReport) -> None:
    """Note tokens that the embedding has no rows for; those of the base itself were so before."""
    try:
        beyond, rows = beyond_rows(model)
    except RequestError as error:
        report.problems += [str(p) for p in error.problems]
        return
    if new := {token: place for token, place in beyond.items() if token not in manifest.beyond_rows}:
        report.problems.append(describe_beyond(new, rows))
    elif beyond:
        report.skipped.append(f"{describe_beyond(beyond, rows)}, as in the base")


def _load(folder: Path, model: Checkpoint, report: VerifyReport) -> None:
    """Load with transformers, as a user would, and note weights that it misses or does not know."""
    names = (model.config or {}).get("architectures") or []
    try:
        import transformers
    except ImportError:
        report.skipped.append('loading: transformers is not installed — pip install "submerge[models]"')
        return
    architecture = getattr(transformers, str(names[0]), None) if names else None
    if architecture is None:
        report.skipped.append("loading: config.json names no architecture that transformers has")
        return
    try:
        with quietly(transformers.logging):
            _, info = architecture.from_pretrained(
                folder, dtype="auto", output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        report.problems.append(f"transformers cannot load it as {names[0]}: {error}")
        return
    _note_weights(info, report)
    report.loaded = str(names[0])


def _note_weights(info: Mapping[str, Any], report: VerifyReport) -> None:
    """Note the weights that transformers did not find in the folder, or did not use."""
    for key, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        if keys := sorted(map(str, info.get(key) or ())):
            report.problems.append(f"transformers finds weights {what}: {', '.join(keys[:5])}")
    if keys := sorted(map(str, info.get("unexpected_keys") or ())):
        report.skipped.append(f"transformers ignores these tensors: {', '.join(keys[:5])}")
