"""Some values of a recipe's output, under names and in an order that are the same for both tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.speed import outputs

__all__ = ["rows_by_token", "sampled"]

EXPERTS, OWN_EXPERTS = ".mlp.experts.", ".block_sparse_moe.experts."
ROUTER, OWN_ROUTER = ".mlp.gate.", ".block_sparse_moe.gate."
"""What mergekit calls parts of a Mixtral with today's transformers, and what published files call them."""


def sampled(folder: Path) -> outputs.Sample:
    """Return values of every tensor of a folder: of tables by their tokens, of experts each by itself."""
    values, rows = {}, rows_by_token(folder)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for stored in file.keys():  # noqa: SIM118 # a file is no mapping
                for name, tensor in _apart(stored, file.get_tensor(stored)):
                    values[name] = outputs.spread(_in_order(tensor, rows))
    return values


def rows_by_token(folder: Path) -> list[int] | None:
    """Return the rows of an output's tokens in the order of their texts: tools number new ones otherwise."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return [ids[text] for text in sorted(ids)]


def _in_order(tensor: torch.Tensor, rows: Sequence[int] | None) -> torch.Tensor:
    if rows is None or tensor.ndim != 2 or len(tensor) != len(rows):
        return tensor
    return tensor[list(rows)]


def _apart(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the matrices of each expert, where a tensor has those of all: w1 and w3 in one, and w2."""
    if EXPERTS not in name:
        yield name.replace(ROUTER, OWN_ROUTER), tensor
        return
    prefix, _, kind = name.replace(EXPERTS, OWN_EXPERTS).rpartition(".")
    for number, expert in enumerate(tensor):
        if kind == "gate_up_proj":
            for own, part in zip(("w1", "w3"), expert.chunk(2), strict=True):
                yield f"{prefix}.{number}.{own}.weight", part
        else:
            yield f"{prefix}.{number}.w2.weight", expert
