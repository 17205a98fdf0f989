"""Makes the models to be merged: Llama-shaped checkpoints of noise, written tensor by tensor."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = [
    "BASE",
    "DTYPES",
    "EIGHT",
    "SIZES",
    "TUNED",
    "UPDATE_STD",
    "Shape",
    "make_models",
    "normal",
    "weights_file",
    "work_option",
]

BASE = "base"
TUNED = ("a", "b", "c")
EIGHT = (*TUNED, "d", "e", "f", "g", "h")
DTYPES = {"bfloat16": "BF16", "float32": "F32"}
"""The number formats of models that are made, and their codes in safetensors."""
WEIGHT_STD = 0.02
"""Of the base's weights, as in a freshly trained Llama."""
UPDATE_STD = 0.0004
"""Of a fine-tune's updates: 2 % of the weights, of the order seen in real full fine-tunes."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-shaped model with an untied head."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor, in file order."""
        h, i, kv = self.hidden, self.intermediate, self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, h)}
        for layer in range(self.layers):
            inner = {
                "self_attn.q_proj": (h, h),
                "self_attn.k_proj": (kv, h),
                "self_attn.v_proj": (kv, h),
                "self_attn.o_proj": (h, h),
                "mlp.gate_proj": (i, h),
                "mlp.up_proj": (i, h),
                "mlp.down_proj": (h, i),
                "input_layernorm": (h,),
                "post_attention_layernorm": (h,),
            }
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
        return shapes | {"model.norm.weight": (h,), "lm_head.weight": (self.vocabulary, h)}

    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self, dtype: str = "bfloat16") -> dict[str, object]:
        """Return the `config.json` that transformers and mergekit accept."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": dtype,
        }


SIZES = {
    "1.1b": Shape(hidden=2048, intermediate=5632, layers=22, vocabulary=32000, heads=32, kv_heads=4),
    "110m": Shape(hidden=768, intermediate=2048, layers=12, vocabulary=16000, heads=12, kv_heads=4),
    "tiny": Shape(hidden=64, intermediate=176, layers=2, vocabulary=320, heads=4, kv_heads=1),
}


def work_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that says where the models lie, which several benchmarks share."""
    cache = os.environ.get("SUBMERGE_CACHE")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(cache) / "speed" if cache else Path(__file__).resolve().parents[1] / "work",
        help=f"{what} (default: $SUBMERGE_CACHE/speed, else benchmarks/work)",
    )


def weights_file(model: Path) -> Path:
    """Return the path of a model's only weights file."""
    return model / "model.safetensors"


def flat(dims: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return an update of independent entries: its spectrum is flat."""
    return normal(dims, UPDATE_STD, seed)


def make_models(
    folder: Path,
    shape: Shape,
    say: Callable[[str], None],
    update: Callable[[tuple[int, ...], int], torch.Tensor] = flat,
    tuned: Sequence[str] = TUNED,
    dtype: str = "bfloat16",
) -> dict[str, Path]:
    """Return name -> folder of the base and the tuned models; makes those that `folder` lacks.

    `update` takes a shape and a seed, and returns what a tuned model adds to the base's tensor.
    """
    models = {name: folder / name for name in (BASE, *tuned)}
    for number, path in enumerate(models.values()):
        if path.exists():
            continue
        say(f"making {path}")
        part = path.with_name(path.name + ".part")  # a model that has its name is complete
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(shape.config(dtype), indent=2) + "\n")
        _write_weights(weights_file(part), shape, number, update, dtype)
        part.rename(path)
    return models


def _write_weights(
    path: Path,
    shape: Shape,
    model: int,
    update: Callable[[tuple[int, ...], int], torch.Tensor],
    dtype: str,
) -> None:
    """Write one model; holds one tensor at a time. Model 0 is the base."""
    stored: torch.dtype = getattr(torch, dtype)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shape.tensors().items():
        start, end = end, end + stored.itemsize * math.prod(dims)
        header[name] = {"dtype": DTYPES[dtype], "shape": dims, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for number, dims in enumerate(shape.tensors().values()):
            weight = normal(dims, WEIGHT_STD, seed=number)
            if len(dims) == 1:
                weight += 1  # norms
            if model:
                weight += update(dims, number + 1_000_000 * model)
            file.write(weight.to(stored).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def normal(shape: tuple[int, ...], std: float, seed: int) -> torch.Tensor:
    """Return independent normal numbers."""
    return torch.empty(shape).normal_(0, std, generator=torch.Generator().manual_seed(seed))
