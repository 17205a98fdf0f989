"""Checks of a merged folder's values: are they those that were written, and finite?

A copy in another dtype has other bytes. A wider one has the same values, so that the digest of what was
written is found again by rounding them back; of a narrower one it cannot be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from submerge.deferred import np
from submerge.engine.output._verify_report import VerifyReport
from submerge.engine.work import nonfinite_in_bytes
from submerge.errors import few
from submerge.kernels import array_type, load
from submerge.store import (
    DTYPES,
    Checkpoint,
    FileTable,
    Source,
    TensorEntry,
    TensorRecord,
    blocks,
    byte_view,
    hasher,
    joined,
    rounded,
)

__all__ = ["check_dtypes", "check_values"]


def check_dtypes(model: Checkpoint, records: Mapping[str, TensorRecord], report: VerifyReport) -> None:
    """Note tensors of another shape or dtype than was written: those of a copy in another dtype together."""
    copied: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, entry in model.tensors.items():
        record = records.get(name)
        if record is None or (record.dtype, record.shape) == (entry.dtype, entry.shape):
            continue
        if _is_copy(entry, record):
            copied[entry.dtype, record.dtype].append(name)
        else:
            report.problems.append(f"{name}: is {entry.dtype} {list(entry.shape)}, not as written")
    for (found, written), names in copied.items():
        count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        report.problems.append(f"{count} {found}, not {written} as written ({few(names)})")
        if not DTYPES[found].is_wider(DTYPES[written]):
            what = f"values of {few(names)}: not compared, as the digests are of {written}"
            report.skipped.append(what)


def check_values(
    model: Checkpoint, records: Mapping[str, TensorRecord], allowed: Iterable[str], report: VerifyReport
) -> None:
    """Compare all values with their digests; `allowed` are the tensors that may hold NaN and Inf."""
    may_hold = {name for tensor in allowed for name in (tensor, *_factors(tensor))}
    with FileTable() as table:
        for name, entry in model.tensors.items():
            record, source = records.get(name), model.source(name, table)
            digest, bad = _read(entry, record, source)
            report.tensors += 1
            report.bytes += entry.nbytes
            if record and digest is not None and digest != record.digest:
                report.problems.append(
                    f"{name}: the values are not those that were written (in {entry.file})"
                )
            if bad:
                report.nonfinite[name] = bad
                if name not in may_hold:
                    report.problems.append(f"{name}: {bad} values are NaN or Inf")


def _is_copy(entry: TensorEntry, record: TensorRecord) -> bool:
    """Return whether a tensor of floats has the shape that was written, and another dtype of floats."""
    kinds = {DTYPES[code].kind for code in (entry.dtype, record.dtype) if code in DTYPES}
    return entry.shape == record.shape and entry.dtype != record.dtype and kinds == {"float"}


def _factors(name: str) -> list[str]:
    """Return the keys of an adapter's factors of a parameter."""
    module = f"base_model.model.{name.removesuffix('.weight')}"
    return [
        f"{module}.{role}"
        for role in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
    ]


def _read(entry: TensorEntry, record: TensorRecord | None, source: Source) -> tuple[str | None, int]:
    """Return the digest of a tensor's values as they were written, and its count of NaN and Inf.

    The digest goes by the blocks that the manifest names; None where the dtype cannot hold the values.
    """
    written = record.dtype if record is not None and _is_copy(entry, record) else entry.dtype
    itemsize = DTYPES[written].itemsize
    length = max(1, record.block // itemsize if record is not None and record.block else entry.numel)
    digests, nonfinite = [], 0
    for start in range(0, max(1, entry.numel), length):
        digest = hasher()
        for _, view in blocks(source, start, min(entry.numel, start + length), entry.itemsize):
            nonfinite += nonfinite_in_bytes(view, entry.dtype)
            digest.update(view if entry.dtype == written else _rounded_back(view, entry.dtype, written))
        digests.append(digest.hexdigest())
    comparable = entry.dtype == written or DTYPES[entry.dtype].is_wider(DTYPES[written])
    return (joined(digests) if comparable else None), nonfinite


def _rounded_back(view: memoryview, found: str, written: str) -> memoryview:
    """Return the bytes of values of one dtype of floats in another."""
    raw = np.frombuffer(view, array_type(found))
    values = np.empty(raw.size, np.float64 if found == "F64" else np.float32)
    load(found, raw, values)
    return byte_view(rounded(values, written))
