"""Suites that are not in this repository, named as `path/to/file.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.replication.suite import Suite

__all__ = ["suite_named"]

KINDS = ("full", "lora")


def suite_named(text: str) -> Suite:
    """Return the suite that a text names; raise `ValueError` with what is wrong.

    The file's folder is put on Python's path, so that processes that are started anew find its
    functions. It is also where `read` looks for data, unless SUBMERGE_DATA says otherwise.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise ValueError(f"{text!r} is no suite of the bench, and no path/to/file.py:NAME or module:NAME")
    file = Path(place).resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file is not None:
        sys.path.insert(0, str(file.parent))
    module = file.stem if file else place
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{place} cannot be imported: {error}") from error
    where = Path(loaded.__file__ or "").resolve()
    if file is not None and where != file:
        raise ValueError(f"another module is called {module} ({where}): give {file.name} another name")
    suite = getattr(loaded, name, None)
    if not isinstance(suite, Suite):
        names = [key for key, value in vars(loaded).items() if isinstance(value, Suite)]
        raise ValueError(f"{place} has no suite {name}; it has {', '.join(names) or 'none'}")
    if wrong := [kind for kind in suite.trainings if kind not in KINDS]:
        raise ValueError(f"{name}: trainings are of {' and '.join(KINDS)}, not {', '.join(wrong)}")
    if missing := [task for task in suite.tasks if task not in suite.known]:
        raise ValueError(f"{name}: tasks that are not known: {', '.join(missing)}")
    if len(suite.tasks) < 2:
        raise ValueError(f"{name}: there is nothing to merge in fewer than two tasks")
    return suite if suite.data else suite.cut(data=where.parent)
