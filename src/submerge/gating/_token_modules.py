"""Which modules of a model map token by token: there streams of tokens may have parameters of their own.

A module's kind tells whether it maps each row by itself. Which rows of its input are whose is seen in a pass
of B prompts of L tokens through a model without values, where no model has L heads:

    [B, L, …, n]   one row a token, or one a head of each        Linear, norms, q_norm of Qwen 3
    [B·L, n]       the same, flattened                           OPT
    [B, H, L, n]   heads first                                   q_norm of Gemma 3
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from submerge.gating._batch import tensors
from submerge.gating._gated_linear import is_transposed
from submerge.gating._gated_rows import is_row_wise

__all__ = ["TokenModules", "token_modules"]

Shapes: TypeAlias = list[tuple[int, ...]]
"""Those of all tensors that a module is given at once."""
_SAMPLES, _LENGTH = 2, 37


@dataclass(frozen=True)
class TokenModules:
    """Which of a model's modules streams may have parameters of their own in.

    Attributes:
        refused: those in which they may not, and why.
        heads_first: those whose rows are [B, H, L].
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    heads_first: frozenset[str] = frozenset()


def token_modules(model: nn.Module, paths: Iterable[str]) -> TokenModules:
    """Return which of the modules that are named by their paths map token by token.

    `model` is a language model of transformers on the meta device, which is put into bfloat16: some kernels
    ask for it. Where it cannot be run without values, modules of a right kind that were not reached are taken
    to see tokens as most do, [B, L, n].
    """
    modules = {path: model.get_submodule(path) for path in paths}
    refused = {path: why for path, module in modules.items() if (why := _refused_kind(module))}
    right = {path: module for path, module in modules.items() if path not in refused}
    calls, is_complete = _calls(model, right)
    heads_first = set()
    for path, module in right.items():
        if path not in calls:
            refused |= {path: "another module reads its parameters"} if is_complete else {}
        elif all(_has_heads_first(shapes) for shapes in calls[path]):
            heads_first.add(path)
        elif not all(_has_tokens(module, shapes) for shapes in calls[path]):
            shown = " and ".join(str(list(shape)) for shape in calls[path][0])
            refused[path] = f"it is given {shown}, and not a row for each token"
    return TokenModules(dict(sorted(refused.items())), frozenset(heads_first))


def _refused_kind(module: nn.Module) -> str:
    """Return why a module of this kind does not map token by token; an empty text where it does."""
    if _is_map(module) or is_row_wise(module):
        return ""
    return f"{type(module).__name__} is not known to map each token by itself"


def _is_map(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward or is_transposed(module)


def _has_heads_first(shapes: Shapes) -> bool:
    first = shapes[0] if len(shapes) == 1 else ()
    return len(first) == 4 and first[1] != _LENGTH and (first[0], first[2]) == (_SAMPLES, _LENGTH)


def _has_tokens(module: nn.Module, shapes: Shapes) -> bool:
    """Return whether a module is given one input, whose rows are those of the tokens, or of their heads."""
    if len(shapes) != 1 or not (_is_map(module) or _width(module) == shapes[0][-1:]):
        return False
    return shapes[0][:2] == (_SAMPLES, _LENGTH) or shapes[0][:-1] == (_SAMPLES * _LENGTH,)


def _width(module: nn.Module) -> tuple[int, ...]:
    return next(tuple(parameter.shape) for parameter in module.parameters())


def _calls(model: nn.Module, modules: Mapping[str, nn.Module]) -> tuple[dict[str, list[Shapes]], bool]:
    """Return the shapes of what each module is given in a pass, and whether the pass came to its end."""
    calls: dict[str, list[Shapes]] = {}

    def look(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(path, []).append([tuple(x.shape) for x in tensors((args, kwargs))])

        return hook

    with ExitStack() as stack:
        for path, module in modules.items():
            handle = module.register_forward_pre_hook(look(path), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        model.to(torch.bfloat16)
        for inputs in _prompts():
            calls.clear()
            try:
                model(**inputs)
            except Exception:  # a class that looks at values, which are not there, or takes other inputs
                continue
            return calls, True
    return calls, False


def _prompts() -> Iterator[dict[str, Any]]:
    """Yield a prompt without values in several forms.

    Attention takes a mask that is ready as it is; what is made of none may be looked at. Classes without
    attention take the ids alone.
    """
    ids = torch.zeros(_SAMPLES, _LENGTH, dtype=torch.long, device="meta")
    mask = torch.zeros(_SAMPLES, 1, _LENGTH, _LENGTH, dtype=torch.bfloat16, device="meta")
    yield {"input_ids": ids, "use_cache": False}
    yield {"input_ids": ids, "use_cache": False, "attention_mask": mask, "position_ids": ids}
