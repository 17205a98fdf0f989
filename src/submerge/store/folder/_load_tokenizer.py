"""A folder's tokenizer in memory, as its files say what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, of a class of transformers.

    A `tokenizer.json` says all that the tokenizer does. For some kinds of models `AutoTokenizer` takes the
    tokens alone from it, for a class that cuts texts in a way of its own and may add tokens. Files of other
    forms are left to that.

    Raises `RequestError` where transformers is missing or cannot load it.
    """
    transformers = required("transformers", "the tokenizer of a composed model needs")
    by_file = (folder / "tokenizer.json").is_file()
    kind = transformers.PreTrainedTokenizerFast if by_file else transformers.AutoTokenizer
    try:
        with quietly(transformers.logging):
            return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind: a broken file fails where the library first trips over it
        what = f"transformers cannot load the tokenizer ({str(error).strip().partition(chr(10))[0]})"
        raise RequestError(Problem(what, str(folder), "repair its files, or copy the base's")) from error
