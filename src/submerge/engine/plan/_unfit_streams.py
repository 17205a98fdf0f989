"""Streams that no loaded model can run: their parameters are packed, or their module mixes tokens."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from submerge.engine.plan._plan import MergePlan
from submerge.engine.plan._stream_parts import is_gated
from submerge.errors import Problem, few
from submerge.names import loadable_model, loaded_names

__all__ = ["unfit_streams"]

_HINT = "add 'modality_tokens: merged': all tokens run with the merged language model"


def unfit_streams(plan: MergePlan) -> list[Problem]:
    """Return problems where tokens of a modality have parameters of their own that cannot be run with.

    `submerge.load` gates a parameter by its name in the files, which transformers must keep in one piece, in
    a module that maps each token by itself. Models that are not fetched yet, or that transformers does not
    know, are not looked at.
    """
    streamed = [tensor for tensor in plan.tensors if tensor.has_streams]
    if not streamed or any(model.pending for model in plan.models):
        return []
    model = loadable_model(plan.inputs.reference_model.config)
    if model is None:
        return []
    gated = [tensor.name for tensor in streamed if is_gated(plan, tensor)]
    loaded = loaded_names(model, gated)
    base = plan.inputs.reference_model.label
    problems = []
    if packed := [name for name in gated if name not in loaded]:
        what = "transformers packs parameters together that tokens of a modality have otherwise"
        problems.append(Problem(f"{what}: {few(packed)}", base, _HINT))
    for why, names in _not_by_token(model, loaded).items():
        what = f"tokens of a modality cannot have values of their own of {few(names)}: {why}"
        problems.append(Problem(what, base, _HINT))
    return problems


def _not_by_token(model: Any, loaded: dict[str, str]) -> dict[str, list[str]]:
    """Return the tensors whose modules do not map each token by itself, by the reason.

    `loaded` are the model's names of the tensors.
    """
    from submerge.gating import token_modules  # here: it loads torch

    paths = {name: parameter.rpartition(".")[0] for name, parameter in loaded.items()}
    refused = token_modules(model, dict.fromkeys(paths.values())).refused
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in paths.items():
        if path in refused:
            reasons[refused[path]].append(name)
    return reasons
