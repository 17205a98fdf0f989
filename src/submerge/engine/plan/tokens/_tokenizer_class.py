"""The class that transformers takes for a donor's tokenizer, which lies beside another model's configuration.

`AutoTokenizer` goes by `model_type`, too: for some types it takes the tokens of a `tokenizer.json` alone, and
cuts texts in the way of that type. What is loaded so from the output is compared with the donor's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from submerge.deferred import quietly, required
from submerge.engine.plan.tokens._output_tokenizer import fast_backend
from submerge.errors import Problem, RequestError, few
from submerge.store import Checkpoint, Tokenizer, load_tokenizer, read_json

__all__ = ["tokenizer_class"]

_CONFIG = "tokenizer_config.json"
_FILE = "PreTrainedTokenizerFast"
"""The class that does all that a `tokenizer.json` says, by the name that all versions have for it."""
_OWN_NAME = {"TokenizersBackend": _FILE}


def tokenizer_class(donor: Tokenizer, label: str, model: Checkpoint) -> tuple[str | None, list[str]]:
    """Return the class that `tokenizer_config.json` is to name beside a model's configuration, and warnings.

    None where the files need no other than they name. The warning is that transformers takes another class
    all the same. Where transformers is not installed, or runs code for the tokenizer, nothing is known.
    Raises `RequestError` where the tokenizer cannot be loaded, by the library tokenizers or beside the model.
    """
    folder = donor.folder
    if (folder / "tokenizer.json").is_file():
        fast_backend(folder)
    settings = _read(folder / _CONFIG)
    config = model.config or {}
    of_type = config.get("model_type")
    if (
        of_type is None
        or of_type == _read(folder / "config.json").get("model_type")
        or "auto_map" in settings
        or find_spec("transformers") is None
    ):
        return None, []
    own = _loaded(folder) or load_tokenizer(folder)
    name = _OWN_NAME.get(type(own).__name__, type(own).__name__)
    with TemporaryDirectory() as place:
        beside = Path(place)
        for file in donor.files:
            if file.parent == Path() and file.name != _CONFIG:
                (beside / file).symlink_to((folder / file).resolve())
        found = _loaded_with(beside, settings, config)
        if found is not None and not _unlike(own, found):
            return None, []
        named = _loaded_with(beside, {**settings, "tokenizer_class": name}, config)
    if named is not None and not _unlike(own, named):
        return name, []
    if found is None:
        what = f"transformers cannot load this tokenizer beside a configuration of {of_type}"
        raise RequestError(Problem(what, label, "choose another donor"))
    parts = few(_unlike(own, found), 9)
    what = f"transformers takes {type(found).__name__} for this tokenizer in a model of type {of_type}"
    what += f", which is another than the donor's ({parts})"
    return None, [f"{label}: {what} — load the output's with transformers.{name}.from_pretrained"]


def _loaded_with(folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """Return the tokenizer whose other files are in a folder."""
    for name, content in ((_CONFIG, settings), ("config.json", config)):
        if content:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return _loaded(folder)


def _loaded(folder: Path) -> Any:
    """Return the tokenizer of a folder as `AutoTokenizer` loads it; None where it cannot."""
    transformers = required("transformers", "a tokenizer needs")
    try:
        with quietly(transformers.logging):
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # of any kind, as of files that are read by another class than theirs
        return None


def _unlike(own: Any, other: Any) -> list[str]:
    """Return in what two tokenizers differ, by the parts of `tokenizer.json`."""
    parts, others = _parts(own), _parts(other)
    return [key for key in {**parts, **others} if parts.get(key) != others.get(key)]


def _parts(tokenizer: Any) -> dict[str, Any]:
    """Return what a tokenizer does to a text, without what is off; of one in Python its class and tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    content = json.loads(backend.to_str())
    model = {f"model.{key}": value for key, value in content.pop("model").items()}
    for key in ("version", "truncation", "padding"):
        content.pop(key, None)
    return {key: value for key, value in {**content, **model}.items() if value not in (None, False, "", [])}


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
