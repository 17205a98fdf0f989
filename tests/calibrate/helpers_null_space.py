"""Two adapters on a tiny LM in memory, batches with padding, and the ratio by explicit projectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from _adapters import Tuned
from _models import quiet_transformers
from store.helpers_adapter import MODELS
from submerge.calibrate import AttachedAdapters, attached
from submerge.store import Adapter, open_adapter

Batch = dict[str, torch.Tensor]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(seed: int, size: int = 3, length: int = 7) -> Batch:
    """Return token ids of which each sample but the first has one more position of padding, on the left."""
    ids = torch.randint(5, 60, (size, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.stack([torch.arange(length) >= row for row in range(size)])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def base_model(tuned: Tuned, dtype: torch.dtype = torch.float64) -> Any:
    model = MODELS[tuned.kind](quiet_transformers())
    model.load_state_dict(tuned.state)
    return model.to(dtype).eval().requires_grad_(False)


def opened(tuned: Tuned) -> dict[str, Adapter]:
    return {f"a{k}": open_adapter(str(folder)) for k, folder in enumerate(tuned.adapters)}


@contextmanager
def on_base(tuned: Tuned) -> Iterator[tuple[Any, AttachedAdapters]]:
    model = base_model(tuned)
    with attached(model, opened(tuned)) as adapters:
        yield model, adapters


def projected(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ‖P x‖ / ‖x‖ for rows x [N, n], with P = N Nᵀ of the vectors N that an SVD gives for null(A)."""
    _, s, vh = torch.linalg.svd(a.double())
    null = vh[int((s > 1e-7 * s.max()).sum()) :]
    return (x.double() @ null.T @ null).norm(dim=-1) / x.double().norm(dim=-1)


def all_inputs(
    model: nn.Module,
    names: Sequence[str],
    inputs: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Return the inputs of modules without padding, of a full pass with these weights."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0]})
        )
        for name in names
    ]
    torch.func.functional_call(model, dict(weights or {}), kwargs=dict(inputs))
    for handle in handles:
        handle.remove()
    if (mask := inputs.get("attention_mask")) is None:
        return {name: x.flatten(0, -2) for name, x in seen.items()}
    return {name: x[mask.bool()] for name, x in seen.items()}
