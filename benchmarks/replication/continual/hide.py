"""LoRAs fused as HiDe-LLaVA does in all layers but the last: factors are summed, and not their products.

    Δ = (Σ_i B_i) (Σ_i A_i) = Σ_i B_i A_i + Σ_{i≠j} B_i A_j        (arXiv 2503.12941)

The terms beside the tasks' own are what LPM, which works on products, has not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.replication.methods import Merge

__all__ = ["HIDE", "fuse"]

HIDE = Merge("hide", "lambda", {"weight": 1.0}, method="task_arithmetic", kinds=("lora",))
"""Of fused adapters, which all have the same update: λ acts on it as on the sum of the tasks' updates."""
WEIGHTS = "adapter_model.safetensors"


def fuse(adapters: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Return task -> an adapter with the fused LoRA, 1/T of it, and the task's own projector."""
    states = {task: load_file(adapter / WEIGHTS) for task, adapter in adapters.items()}
    factors = [name for name in next(iter(states.values())) if "lora_" in name]
    shared = {name: sum(state[name] for state in states.values()) for name in factors}
    shared |= {name: shared[name] / len(adapters) for name in factors if "lora_B" in name}
    for task, adapter in adapters.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        save_file(states[task] | shared, folder / task / WEIGHTS)
        shutil.copy(adapter / "adapter_config.json", folder / task)
    return {task: folder / task for task in adapters}
