"""A folder's tokenizer in memory, as its files say what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submerge.deferred import quietly, required
from submerge.errors import Problem, RequestError, few, first_line
from submerge.store.folder._tokenizer import named_code

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
    code = {} if by_file else {"trust_remote_code": False}  # or it asks whether to run it
    try:
        with quietly(transformers.logging):
            return kind.from_pretrained(folder, local_files_only=True, **code)
    except Exception as error:  # of any kind: a broken file fails where the library first trips over it
        what = f"transformers cannot load the tokenizer ({first_line(error).rstrip(' :')})"
        hint = "repair its files, or copy those of a model with the same tokens in their place"
        if not any((folder / name).is_file() for name in ("tokenizer_config.json", "config.json")):
            hint = "add its tokenizer_config.json, which names its class"
        if modules := named_code(folder):
            what = f"the tokenizer needs its code ({few(map(str, modules))}), which is not run here"
            hint = (
                "load it in Python with trust_remote_code=True, and save_pretrained() it as a fast tokenizer"
            )
        raise RequestError(Problem(what, str(folder), hint)) from error
