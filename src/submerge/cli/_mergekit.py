"""The flags of mergekit-yaml and mergekit-multi: each is turned into our own, or answered in a sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from typer.core import TyperCommand

from submerge.deferred import torch
from submerge.errors import Problem, RequestError

__all__ = ["FLAGS", "SAME", "Flag", "MergekitAware", "translated"]


@dataclass(frozen=True)
class Flag:
    """What becomes of one flag of mergekit's; one without any text asks for what is done anyway.

    `ours` stands in its place, with `{}` for its value. `note` says why it is not needed. `refusal` says what
    cannot be done, and `hint` what to do instead.
    """

    takes_value: bool = False
    ours: tuple[str, ...] = ()
    note: str = ""
    refusal: str = ""
    hint: str = ""


_CUDA = ("--device", "cuda")
_MEMORY = "memory is bounded by --max-memory"
_ADAPTERS = "adapters are applied as they are read, in float32"
_KEEP = ("--keep-parts",)
_IN_PARTS = "results of documents with names are kept in OUT.parts"
_ONE_GPU = "one GPU computes; the result is the same"

FLAGS = {
    "--cuda": Flag(ours=_CUDA),
    "--gpu-rich": Flag(ours=_CUDA, note=_ONE_GPU),
    "--multi-gpu": Flag(ours=_CUDA, note=_ONE_GPU),
    "--device": Flag(takes_value=True, ours=("--device", "{}")),
    "--num-threads": Flag(takes_value=True, ours=("--threads", "{}")),
    "-j": Flag(takes_value=True, ours=("--threads", "{}")),
    "--out-shard-size": Flag(takes_value=True, ours=("--shard-size", "{}")),
    "--copy-tokenizer": Flag(),
    "--no-copy-tokenizer": Flag(
        refusal="the tokenizer is always copied", hint="leave the flag out, and remove the files afterwards"
    ),
    "--write-model-card": Flag(),
    "--no-write-model-card": Flag(
        refusal="the model card is always written", hint="leave the flag out, and remove README.md afterwards"
    ),
    "--safe-serialization": Flag(),
    "--no-safe-serialization": Flag(
        refusal="nothing but safetensors is written", hint="leave the flag out, and convert the result"
    ),
    "--lazy-unpickle": Flag(note=f"{_MEMORY}; PyTorch's .bin files are read with --allow-pickle"),
    "--low-cpu-memory": Flag(note=_MEMORY),
    "--read-to-gpu": Flag(note=_MEMORY),
    "--clone-tensors": Flag(note="a tensor is written as often as the output names it"),
    "--async-write": Flag(note="every worker writes what it has computed"),
    "--write-threads": Flag(takes_value=True, note="every worker writes what it has computed"),
    "--allow-crimes": Flag(note="the names and shapes of tensors decide what can be merged"),
    "--trust-remote-code": Flag(note="no model's code is run by a merge"),
    "--lora-merge-cache": Flag(takes_value=True, note=_ADAPTERS),
    "--lora-merge-dtype": Flag(takes_value=True, note=_ADAPTERS),
    "--transformers-cache": Flag(
        takes_value=True,
        refusal="the Hub's cache is not named by a flag",
        hint="set HF_HUB_CACHE={} in the environment",
    ),
    "--random-seed": Flag(
        takes_value=True, refusal="the seed belongs to the recipe", hint="write 'seed: {}' in it"
    ),
    "--unsafe-truncate-embeddings": Flag(
        refusal="embeddings are not cut",
        hint="merge models of one vocabulary (`submerge plan` compares them)",
    ),
    "--out-path": Flag(takes_value=True, ours=("--out", "{}")),
    "--intermediate-dir": Flag(takes_value=True, ours=_KEEP, note=_IN_PARTS),
    "-I": Flag(takes_value=True, ours=_KEEP, note=_IN_PARTS),
    "--lazy": Flag(ours=("--resume",)),
}
"""Beside these, `--no-…` of a flag that mergekit leaves off by default asks for nothing.

The last four are those of mergekit-multi.
"""

SAME = ("--quiet", "-v")
"""What mergekit has, too, and means the same."""

_SIZE = re.compile(r"(\d+)([kmb])", re.IGNORECASE)
_UNITS = {"k": "kB", "m": "MB", "b": "GB"}


def translated(
    arguments: Sequence[str], options: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the arguments in Submerge's words, and notes on those that are not needed.

    Of these words those stay that are among the command's `options`: a dry run has no use for others.

    Raises:
        RequestError: some of them ask for what is not done; each is answered.
    """
    ours: list[str] = []
    notes: list[str] = []
    problems: list[Problem] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            ours += [argument, *remaining]
            break
        if argument in SAME and options is not None and argument not in options:
            continue
        name, equals, value = argument.partition("=")
        if name.startswith("-j") and name[2:].isdigit():
            name, equals, value = "-j", "=", name[2:]
        flag = FLAGS.get(name)
        if flag is None:
            off = FLAGS.get(name.replace("--no-", "--", 1)) if name.startswith("--no-") else None
            if off is None and name != "--no-quiet":
                ours.append(argument)
            continue
        if flag.takes_value and not equals:
            value = next(remaining, "")
        if name == "--out-shard-size":
            value = _SIZE.sub(lambda match: match[1] + _UNITS[match[2].lower()], value)
        if (name, value) == ("--device", "auto"):
            value = "cuda" if torch.cuda.is_available() else "cpu"
        if options is None or set(flag.ours[:1]) <= set(options):
            ours += [word.replace("{}", value) for word in flag.ours]
        if flag.note:
            notes.append(f"{name} is not needed: {flag.note}")
        if flag.refusal:
            problems.append(Problem(flag.refusal, name, flag.hint.replace("{}", value)))
    if problems:
        raise RequestError(problems)
    return ours, notes


class MergekitAware(TyperCommand):
    """A command that understands the flags of mergekit-yaml besides its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments in Submerge's words; say on standard error what was not needed."""
        if not ctx.resilient_parsing:  # which is how a shell asks for completions
            args, notes = translated(args, [name for option in self.params for name in option.opts])
            for line in notes if not {"-q", "--quiet"} & set(args) else ():
                print(f"note: {line}", file=sys.stderr)
        return super().parse_args(ctx, args)
