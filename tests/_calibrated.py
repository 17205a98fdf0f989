"""A base that transformers loads, adapters that PEFT made of it, inputs in files, and recipes over them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from _adapters import FIRST, SECOND, peft_model
from _models import quiet_transformers
from calibrate.helpers_plain import factors
from store.helpers_adapter import MODELS, State, copied

__all__ = ["Calibrated", "make_calibrated"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAST = {"steps": 2, "batch_size": 2, "where_rising": "learn", "learning_rate": 0.05}


@dataclass(frozen=True)
class Calibrated:
    """A base folder with a tokenizer, the folders `law` and `chess` of its adapters, and a file for each."""

    root: Path
    state: State

    @property
    def base(self) -> Path:
        return self.root / "base"

    def recipe(self, method: str = "nsc", *, data: bool = True, **more: Any) -> dict[str, Any]:
        """Return a recipe over both adapters; of nsc by default, with two steps."""
        found: dict[str, Any] = {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [
                {"model": str(self.root / n), **({"data": str(self.root / f"{n}.jsonl")} if data else {})}
                for n in ("law", "chess")
            ],
            "parameters": dict(FAST) if method == "nsc" and data else {},
        }
        return found | more

    def write(self, name: str, recipe: Mapping[str, Any]) -> Path:
        path = self.root / name
        path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
        return path

    def dense(self, coefficients: Mapping[str, Mapping[str, Any]], initial: float) -> State:
        """Return W + Σ λ s B A in float64, with `initial` for what coefficients do not name."""
        merged = {name: tensor.double() for name, tensor in self.state.items()}
        for adapter in ("law", "chess"):
            for module, (a, b) in factors(self.root / adapter).items():
                weight = coefficients.get(module, {}).get(adapter, initial)
                merged[f"{module}.weight"] += (b * torch.tensor(weight, dtype=torch.float64)) @ a
        return merged


def make_calibrated(root: Path) -> Calibrated:
    """Write the base, the adapters (of other modules, ranks and scales) and four texts for each."""
    t = quiet_transformers()
    torch.manual_seed(0)
    model = MODELS["llama"](t)
    model.save_pretrained(root / "base")
    words = [*SPECIAL, *(f"w{i}" for i in range(5, 64))]
    t.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(root / "base")
    state = copied(model)
    for seed, (name, options) in enumerate({"law": FIRST, "chess": SECOND}.items()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model("llama", state, seed + 1, **options).save_pretrained(str(root / name))
        texts = [" ".join(f"w{5 + (7 * seed + 3 * row + i) % 59}" for i in range(6)) for row in range(4)]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return Calibrated(root, state)
