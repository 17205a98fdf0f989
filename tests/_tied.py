"""A tied model that stores its embeddings once or twice, made by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from _models import CONFIG, SMALL, state

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {**CONFIG, "architectures": ["ToyForCausalLM"], "tie_word_embeddings": True}
State = dict[str, torch.Tensor]


def once() -> State:
    """Return a tied model with one copy of its embeddings."""
    return state({name: shape for name, shape in SMALL.items() if name != HEAD})


def both(model: Mapping[str, torch.Tensor]) -> State:
    """Return a tied model with both copies."""
    return {**model, HEAD: model[EMBEDDING].clone()}


def recipe(base: Path, *tuned: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(t), "parameters": {"weight": 0.5}} for t in tuned]
    return {"merge_method": "dare_ties", "base_model": str(base), "models": models,
            "parameters": {"density": 0.5}, **more}  # fmt: skip
