"""Route inputs to LoRA adapters, with transformers, PEFT and safetensors alone.

    from peft import PeftModel
    model = PeftModel.from_pretrained(base, "ADAPTERS/first", adapter_name="first")
    model.load_adapter("ADAPTERS/second", adapter_name="second")
    router = Router("ADAPTERS")
    model.set_adapter(router(model, **inputs))      # one input, or several of one task

A server with many adapters, such as vLLM's, takes the name of the adapter with each request: run the router
on the base model, and send the name that it returns.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Router:
    """Finds the task whose update fits an input best, by what its rows read at one layer of the base.

    The score is "residual", what the rows do not read, or "leading", the share of what they read that falls
    on the lesser half of them.
    """

    def __init__(self, folder: str | Path) -> None:
        told = json.loads((Path(folder) / "router.json").read_text(encoding="utf-8"))
        self.tasks: list[str] = told["tasks"]
        self.modules: list[str] = told["modules"]
        self.score: str = told["score"]
        self.rows = load_file(Path(folder) / "router.safetensors")

    @torch.no_grad()
    def __call__(self, model: Any, **inputs: Any) -> str:
        """Return the task of the inputs, by the mean of their scores."""
        return self.tasks[int(self.scores(model, **inputs).mean(0).argmax())]

    @torch.no_grad()
    def scores(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Return a score [B, T] for each input and task: z-scores, averaged over what was looked at."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        seen: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        mask = inputs.get("attention_mask")

        def look(name: str, x: torch.Tensor) -> None:
            if self.score == "leading" or not seen or seen[-1][0].data_ptr() != x.data_ptr():
                seen.append((x, []))  # held, so that nothing else takes its place
            weights = torch.ones(x.shape[:2]) if mask is None else mask
            weights = weights.to(x).unsqueeze(-1)
            z = ((x * weights).sum(1) / weights.sum(1)).float()
            whole = z.double().square().sum(-1)
            rest = []
            for task in range(len(self.tasks)):
                rows = self.rows.get(f"{name}:{task}", torch.zeros(1, x.shape[-1])).to(z)
                inner, lesser = (z @ rows.T).double().square(), len(rows) // 2
                if self.score == "residual":
                    rest.append((whole - inner.sum(-1)).clamp(min=0).sqrt())
                elif lesser:
                    share = inner[:, -lesser:].sum(-1) / inner.sum(-1).clamp(min=1e-30)
                    rest.append((share * len(rows) / lesser).sqrt())
                else:
                    rest.append(torch.ones_like(whole))
            r = torch.stack(rest, dim=-1)
            seen[-1][1].append((r.mean(-1, keepdim=True) - r) / (r.std(-1, keepdim=True) + 1e-6))

        hooks = [
            plain.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: look(name, args[0])
            )
            for name in self.modules
        ]
        try:
            if hasattr(model, "disable_adapter"):
                with model.disable_adapter():
                    model(**inputs)
            else:
                model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([torch.stack(found).mean(0) for _, found in seen]).mean(0)
