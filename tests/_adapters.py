"""A base on disk, adapters of it that PEFT made, and what PEFT makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import submerge
from _models import ROOM, quiet_transformers, write
from store.helpers_adapter import MODELS, State, copied, loaded
from submerge.engine import MergeReport

__all__ = ["ADAPTER", "CLOSE", "FIRST", "SECOND", "Tuned", "far", "make_tuned", "peft_model", "same_state"]

CLOSE = 1e-5  # float32 sums in another order, of numbers below 10
ADAPTER = {"as": "adapter"}
FIRST = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"]}
SECOND = {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}


def peft_model(kind: str, base: State | None, seed: int, size: float = 0.3, **options: Any) -> Any:
    """Return a PEFT model of a base with one adapter of random numbers."""
    transformers = quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        torch.manual_seed(0)
        model = MODELS[kind](transformers)
        if base is not None:
            model.load_state_dict(base)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(size * torch.randn(parameter.shape, generator=draw))
    return wrapped


@dataclass(frozen=True)
class Tuned:
    """A base folder, adapter folders, and the state dicts of the base and of PEFT's merges into it."""

    kind: str
    base: Path
    adapters: tuple[Path, ...]
    state: State
    merged: tuple[State, ...]

    def full(self) -> list[Path]:
        """Write the adapted models as checkpoints, and return their folders."""
        return [
            write(self.base.parent / f"full{i}", merged, {"model_type": self.kind})
            for i, merged in enumerate(self.merged)
        ]

    def merge(
        self,
        out: Path,
        method: str = "cat",
        models: list[Any] | None = None,
        output: Mapping[str, Any] | None = None,
        base: bool | str = True,
        own: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> MergeReport:
        """Merge models (the bare adapters by default); `own` are the parameters of each model."""
        recipe = self.recipe(method, models, output, base, own, parameters, **more)
        return submerge.merge(recipe, out, settings=ROOM)

    def recipe(
        self,
        method: str = "cat",
        models: list[Any] | None = None,
        output: Mapping[str, Any] | None = None,
        base: bool | str = True,
        own: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        chosen = self.adapters if models is None else models
        found: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": str(m), **({"parameters": dict(own)} if own else {})} for m in chosen],
            "parameters": dict(parameters or {}),
            **({"output": dict(output)} if output else {}),
            **more,
        }
        if base:
            found["base_model"] = base if isinstance(base, str) else str(self.base)
        return found

    def written(self, path: Path, **more: Any) -> Path:
        """Write a recipe to a file."""
        path.write_text(yaml.safe_dump(self.recipe(**more), sort_keys=False))
        return path

    def loaded(self, folder: Path) -> State:
        """Return the base's tensors after PEFT loaded an adapter and merged it."""
        return loaded(self.kind, folder, self.state)


def make_tuned(root: Path, kind: str, *options: Mapping[str, Any], seed: int = 1) -> Tuned:
    """Write a base, and one adapter for each mapping of LoRA's options."""
    torch.manual_seed(0)
    state = copied(MODELS[kind](quiet_transformers()))
    adapters, merged = [], []
    for i, option in enumerate(options):
        wrapped = peft_model(kind, state, seed + i, **option)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.save_pretrained(str(root / f"a{i}"))
            merged.append(copied(wrapped.merge_and_unload()))
        adapters.append(root / f"a{i}")
    base = write(root / "base", state, {"model_type": kind})
    return Tuned(kind, base, tuple(adapters), state, tuple(merged))


def far(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the largest absolute difference over all tensors, which must be the same ones."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in expected)


def same_state(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], to: float) -> None:
    """Assert that no value is further than `to` from the expected one."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    for name, tensor in expected.items():
        off = float((found[name].double() - tensor.double()).abs().max())
        assert off <= to, f"{name}: {off}"
