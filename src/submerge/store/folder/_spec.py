"""What the user wrote for a model: a local path, or a Hub id with a revision."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from submerge.errors import Problem, RequestError, did_you_mean

__all__ = ["HubId", "is_readable", "locate", "sibling_hint", "with_sibling"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository on the Hub, and the branch, tag or commit that was asked for."""

    repo: str
    revision: str | None = None


def locate(spec: str, root: Path) -> Path | HubId:
    """Return the local path that a spec names if it exists, else the Hub id that it reads as.

    Paths win, so that a folder called `a@b` or `org/name` is what it seems. Raises `RequestError` for
    neither.
    """
    path = _path(spec, root)
    if path is not None and path.exists():
        return path
    name, at, revision = spec.rpartition("@")
    if at:
        local = _path(name, root)
        if local is not None and local.exists():
            hint = f"write '{name}' alone, or the Hub id of the repository"
            raise RequestError(Problem("a local path has no revisions", spec, hint))
        if _REPO.fullmatch(name):
            if not _REVISION.fullmatch(revision) or ".." in revision:
                hint = "write org/name@branch, a tag, or a commit"
                raise RequestError(Problem(f"{revision!r} is not a revision", spec, hint))
            return HubId(name, revision)
    elif _REPO.fullmatch(spec):
        return HubId(spec)
    raise RequestError(_missing(spec, root))


def _path(spec: str, root: Path) -> Path | None:
    """Return the path that a text may mean, or None if it can be no path at all."""
    if not spec or "\0" in spec:
        return None
    try:
        path = root / Path(spec).expanduser()
        path.exists()
    except (OSError, RuntimeError):  # a name too long; a home that is not known
        return None
    return path


def _missing(spec: str, root: Path) -> Problem:
    if not spec.strip():
        return Problem("the model's name is empty", "", "give a folder, a .safetensors file, or org/name")
    if spec.startswith(("https://huggingface.co/", "http://huggingface.co/", "hf://")):
        org_and_name = spec.partition("://")[2].removeprefix("huggingface.co/").split("/")[:2]
        return Problem("this is an address, and no model's name", spec, f"write {'/'.join(org_and_name)}")
    hint = sibling_hint(spec, root) or "check the path; a model on the Hub is written org/name"
    return Problem("there is no such file or folder", spec, hint)


def sibling_hint(spec: str, root: Path) -> str:
    """Return `did you mean …?` for the entry of the same parent folder whose name is nearest."""
    path = _path(spec, root)
    if path is None:
        return ""
    try:
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    return did_you_mean(path.name, names, "")


def with_sibling(error: RequestError, spec: str, root: Path) -> RequestError:
    """Return a Hub id's error, and beside it the local folder of a similar name that may have been meant."""
    hint = sibling_hint(spec, root)
    return RequestError([*error.problems, *([Problem(hint, spec)] if hint else [])])


def is_readable(folder: Path) -> bool:
    """Return whether the permissions of a folder allow to list it and to open what is inside."""
    return os.access(folder, os.R_OK | os.X_OK)
