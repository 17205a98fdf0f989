"""The file of a router's calibration, beside the checkpoint.

By inputs of each task it has one matrix and one vector a site, and by inputs of any task the levels of the
scores.

Its name has a part of its digest, so that `submerge.json`, which is written last, names either the file of
before or the new one, whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from submerge.algebra import Discriminant
from submerge.errors import Problem, RequestError, WorkError
from submerge.routing import CalibrationWeights, RouterCalibration, RouterReference
from submerge.serving._folder import Folder
from submerge.store import DIGEST, MANIFEST, Manifest, file_digest

__all__ = ["calibration_path", "parse_calibration", "read_calibration", "write_calibration"]

FORM = "submerge-router-1"
REFERENCE_FORM = "submerge-router-reference-1"
STEM = "router-"


def write_calibration(folder: Path, calibration: RouterCalibration | RouterReference) -> Path:
    """Write a calibration into a served folder, in the place of an earlier one; return the file.

    Raises `WorkError` where the disk refuses; the folder is then as it was.
    """
    manifest = Manifest.read(folder)
    unfinished = folder / f"{STEM}unfinished"
    with _writing(unfinished):
        if isinstance(calibration, RouterReference):
            inputs: int | dict[str, int] = calibration.count
            about = {"settings": calibration.settings, "count": inputs, "found": dict(calibration.found)}
            described = json.dumps(about, sort_keys=True)
            save_file({"levels": calibration.levels}, unfinished, {REFERENCE_FORM: described})
        else:
            inputs = dict(calibration.counts)
            save_file(_tensors(calibration), unfinished, {FORM: _described(calibration)})
        digest = file_digest(unfinished)
        path = folder / f"{STEM}{digest[:16]}.safetensors"
        os.replace(unfinished, path)
    record = {"file": path.name, DIGEST: digest, "inputs": inputs}
    unfinished = folder / f"{MANIFEST}.unfinished"
    with _writing(unfinished):
        unfinished.write_text(replace(manifest, calibration=record).text, encoding="utf-8")
        os.replace(unfinished, folder / MANIFEST)
    for earlier in folder.glob(f"{STEM}*.safetensors"):
        if earlier != path:
            earlier.unlink(missing_ok=True)
    return path


def read_calibration(folder: Folder) -> tuple[RouterCalibration | None, RouterReference | None]:
    """Return the calibration of a folder by inputs of each task, or by inputs of any; None where it has none.

    Raises `RequestError` where the file is missing, or not that which `submerge.json` names.
    """
    if folder.calibration is None:
        return None, None
    path = folder.path
    try:
        path = calibration_path(folder)
        if file_digest(path) != folder.calibration[DIGEST]:
            raise ValueError("its bytes are others than those that were written")
        return parse_calibration(path)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        what = f"the router's calibration cannot be read ({error})"
        hint = 'calibrate the folder again, or load it with calibration="none"'
        raise RequestError(Problem(what, str(path), hint)) from error


def calibration_path(folder: Folder) -> Path:
    """Return the file of a folder's calibration; raise `LookupError` or `TypeError` where it names none."""
    return folder.path / str((folder.calibration or {})["file"])


def parse_calibration(path: Path) -> tuple[RouterCalibration | None, RouterReference | None]:
    """Return what a calibration's file holds; raise what reading it does, or `LookupError` for another."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if REFERENCE_FORM in about:
            return None, RouterReference(file.get_tensor("levels"), **json.loads(about[REFERENCE_FORM]))
        return _parsed(json.loads(about[FORM]), file.get_tensor), None


def _tensors(calibration: RouterCalibration) -> dict[str, torch.Tensor]:
    """Return the weights and offsets of each site's discriminant."""
    tensors = {}
    for number, fitted in enumerate(calibration.discriminants):
        tensors[f"weights.{number}"] = fitted.weights.float().contiguous()
        tensors[f"offsets.{number}"] = fitted.offsets
    return tensors


def _described(calibration: RouterCalibration) -> str:
    """Return all but the tensors, as JSON."""
    content = {
        "sites": calibration.sites,
        "shrinkage": [fitted.shrinkage for fitted in calibration.discriminants],
        "weights": {
            "with_heads" if heads else "without_heads": asdict(weights)
            for heads, weights in calibration.weights.items()
        },
        "settings": calibration.settings,
        "counts": calibration.counts,
    }
    return json.dumps(content, sort_keys=True)


def _parsed(content: Any, tensor: Callable[[str], torch.Tensor]) -> RouterCalibration:
    """Return the calibration of a file's metadata and tensors."""
    discriminants = tuple(
        Discriminant(tensor(f"weights.{number}").double(), tensor(f"offsets.{number}"), shrinkage)
        for number, shrinkage in enumerate(content["shrinkage"])
    )
    weights = {
        name == "with_heads": CalibrationWeights(**values) for name, values in content["weights"].items()
    }
    sites = tuple(content["sites"])
    return RouterCalibration(sites, discriminants, weights, content["settings"], content["counts"])


@contextmanager
def _writing(unfinished: Path) -> Iterator[None]:
    """Leave no unfinished file behind, and say of what the disk refuses which file it is."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        reason = getattr(error, "strerror", None) or str(error)
        what = f"{unfinished.parent}: writing the calibration failed ({reason}) — free some space"
        raise WorkError(what) from error
