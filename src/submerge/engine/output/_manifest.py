"""What `submerge.json` says of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from submerge._version import __version__
from submerge.engine.output._records import Records
from submerge.engine.output._target import OutputTarget
from submerge.engine.plan import MergePlan, TensorPlan
from submerge.recipe import COEFFICIENTS
from submerge.store import DIGEST, Adapter, Checkpoint, Manifest, ModelRecord, file_digest

__all__ = ["make_manifest"]


def make_manifest(plan: MergePlan, target: OutputTarget[Any], records: Records) -> Manifest:
    """Return the content of submerge.json: the same for every run of the same merge."""
    read = records.read()
    used = {i: sum(_takes_part(t, i, plan.inputs.reference) for t in plan.tensors) for i in plan.participants}
    return Manifest(
        version=__version__,
        recipe=plan.recipe.resolved(),
        models=[
            _model_record(model, plan.unused.get(i, ()), read.get(i, {}), used.get(i))
            for i, model in enumerate(plan.models)
            if model.files
        ],
        warnings=[*plan.warnings, *target.warnings(records)],
        nonfinite=records.nonfinite(),
        differs=records.differs(),
        beyond_rows=list(plan.tokens.beyond) if plan.tokens else [],
        tensors=target.tensors(records),
        coefficients=_coefficients(plan),
        moments={file.name: {DIGEST: file_digest(file)} for file in plan.recipe.moment_files},
        **target.manifest_fields(records),
    )


def _coefficients(plan: MergePlan) -> dict[str, Any] | None:
    """Return the file beside the weights that has the coefficients, with a digest of its numbers."""
    coefficients = plan.recipe.coefficients
    return None if coefficients is None else {"file": COEFFICIENTS, DIGEST: coefficients.digest}


def _takes_part(tensor: TensorPlan, model: int, reference: int) -> bool:
    """Return whether a tensor is merged from one of this model's own, or from its adapter's part."""
    own = (i for i in tensor.inputs if i.model == model)
    return tensor.action == "merge" and any(model == reference or i.patch or not i.relative for i in own)


def _model_record(
    model: Checkpoint, unused: Sequence[str], read: Mapping[str, Any], used: int | None
) -> ModelRecord:
    """Return what submerge.json says of a model; `used` counts the tensors that it had a part in.

    Of a virtual model that is what it would say if the model lay in a folder.
    """
    own = {file.name: file.stat().st_size for file in model.own_files}
    return ModelRecord(
        model=model.label,
        revision=model.revision,
        adapter=_adapter(model.adapter) if model.adapter else None,
        files={**model.virtual.weights, **own} if model.virtual else own,
        names=model.renamed,
        read=read,
        used=used,
        unused=unused,
    )


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        **({"revision": adapter.revision} if adapter.revision else {}),
        DIGEST: adapter.digest(),
        "notes": list(adapter.notes),
    }
