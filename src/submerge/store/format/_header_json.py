"""The JSON at the beginning of a safetensors file, or what the file is instead.

Layout: 8 bytes little-endian N, N bytes of JSON, then the data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submerge.errors import Problem, RequestError
from submerge.store.format._json import strict_json

__all__ = ["AGAIN", "NPZ_HINT", "HeaderJson", "read_header_json", "short"]

MAX_BYTES = 100_000_000  # the library's own limit
AGAIN = "the file is damaged: copy or download it again"
NPZ_HINT = (
    "convert it: safetensors.numpy.save_file(dict(numpy.load(path)), 'adapters.safetensors'); adapters of "
    'mlx-examples then need an adapter_config.json beside it, {"lora_parameters": {"scale": …}}, with the '
    "scale that was trained with (20 in mlx-examples, another in its first versions)"
)
"""What to do with an archive of NumPy's, as MLX wrote adapters and models before safetensors."""
_SIGNATURES = (
    (b"GGUF", "is a GGUF file", "Submerge reads safetensors: give the unquantised original checkpoint"),
    (
        b"PK\x03\x04",
        "is a PyTorch pickle archive under another name",
        "convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)",
    ),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights",
        "run `git lfs pull` in that folder, or use `hf download`",
    ),
)


@dataclass(frozen=True)
class HeaderJson:
    """What a header says, the byte at which the data begin, and the size of the file in bytes."""

    table: dict[str, Any]
    start: int
    size: int


def read_header_json(path: Path) -> HeaderJson:
    """Return a file's header as plain data; raise `RequestError` where there is none, or it is no JSON."""
    raw, size = _json_bytes(path)
    try:
        table = strict_json(raw)
    except ValueError as error:
        raise _refusal(path, f"the header is not valid JSON ({short(error)})") from None
    if not isinstance(table, dict):
        raise _refusal(path, "the header is not a JSON object")
    return HeaderJson(table, 8 + len(raw), size)


def short(text: object) -> str:
    """Return a text of a file, or about one, as long as a message may quote it."""
    quoted = str(text)
    return quoted if len(quoted) <= 200 else quoted[:200] + "…"


def _refusal(path: Path, what: str, hint: str = AGAIN) -> RequestError:
    return RequestError(Problem(what, str(path), hint))


def _json_bytes(path: Path) -> tuple[bytes, int]:
    """Return the raw JSON and the size of the file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for ever
            raise _refusal(path, "is not a regular file", "name a safetensors file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = _json_length(path, file.read(24), size)
            file.seek(8)
            raw = file.read(length)
    except IsADirectoryError:
        raise _refusal(path, "is a folder where a file is expected", "name the file inside it") from None
    except FileNotFoundError:
        raise _refusal(path, "does not exist", "check the path") from None
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})", "check the permissions") from None
    if len(raw) != length:
        raise _refusal(path, "shrank while its header was read")
    if not raw.startswith(b"{"):
        raise _refusal(path, "the header is not valid JSON (it does not start with '{')")
    return raw, size


def _json_length(path: Path, beginning: bytes, size: int) -> int:
    """Return how many bytes of JSON a file declares, by its first bytes and its size."""
    if beginning.startswith(b"PK\x03\x04") and path.suffix == ".npz":
        raise _refusal(path, "is an archive of NumPy arrays", NPZ_HINT)
    for signature, what, hint in _SIGNATURES:
        if beginning.startswith(signature):
            raise _refusal(path, what, hint)
    if size == 0:
        raise _refusal(path, "is empty")
    if size < 8:
        raise _refusal(path, f"has {size} bytes, too few for a safetensors header")
    (length,) = struct.unpack("<Q", beginning[:8])
    declared = f"declares a header of {length} bytes"
    if length > MAX_BYTES:
        hint = "this is not a safetensors file, or it is damaged"
        raise _refusal(path, f"{declared} (the limit is {MAX_BYTES})", hint)
    if 8 + length > size:
        raise _refusal(path, f"{declared} but the whole file has {size}: it is truncated")
    return int(length)
