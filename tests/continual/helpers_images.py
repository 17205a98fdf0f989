"""A tiny LLaVA, adapters that PEFT made of it, some with projectors of their own, and images of each task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers
from continual.conftest import save_quietly

PLACEHOLDER, ROWS, PATCHES = 63, 64, 4
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LANGUAGE = r".*language_model.*layers\.\d+\.self_attn\.(?:q|v)_proj"
PROJECTOR = "multi_modal_projector"
WAYS: dict[str, dict[str, Any]] = {
    "birds": {"modules_to_save": [PROJECTOR]},
    "cars": {"modules_to_save": [PROJECTOR]},
    "maps": {"target_modules": rf"{LANGUAGE}|.*{PROJECTOR}\.linear_\d"},
    "signs": {},  # the base's projector
    "tower": {"target_modules": rf"{LANGUAGE}|.*vision_tower.*\.q_proj"},
    "norms": {"modules_to_save": [PROJECTOR, "norm"]},
}
"""How each task's adapter is made: which of them changes the projector, and how."""


def llava(t: Any, width: int = 8) -> Any:
    text = t.LlamaConfig(**TOWER, num_key_value_heads=1, vocab_size=ROWS, pad_token_id=0)
    vision = t.CLIPVisionConfig(**{**TOWER, "hidden_size": width}, image_size=8, patch_size=4)
    config = t.LlavaConfig(text_config=text, vision_config=vision, image_token_index=PLACEHOLDER)
    return t.LlavaForConditionalGeneration(config)


@dataclass(frozen=True)
class ImageTasks:
    """A folder with `base`, and an adapter for each task."""

    root: Path

    @property
    def base(self) -> str:
        return str(self.root / "base")

    def of(self, name: str) -> tuple[str, str, list[dict[str, torch.Tensor]]]:
        """Return what `Continual.add` takes of a task: its name, its adapter, its inputs in batches."""
        return name, str(self.root / name), batches(name)

    def tuned(self, name: str) -> Any:
        """Return a task's own model, as PEFT makes it."""
        import peft

        t = quiet_transformers()
        model = t.LlavaForConditionalGeneration.from_pretrained(self.base)
        wrapped = peft.PeftModel.from_pretrained(model, str(self.root / name))
        return wrapped.merge_and_unload().eval()

    def projector(self, name: str) -> dict[str, torch.Tensor]:
        """Return the parameters of a task's projector, by the names of the base's files."""
        state = self.tuned(name).state_dict()
        own = {key.removeprefix("model."): value for key, value in state.items()}
        return {key: value for key, value in own.items() if key.startswith(PROJECTOR)}


@cache
def batches(name: str) -> list[dict[str, torch.Tensor]]:
    """Return two batches of a task's images with questions; images of a task are alike."""
    seed = sorted(WAYS).index(name)
    draw = torch.Generator().manual_seed(seed)
    like = 3 * torch.randn(3, 8, 8, generator=draw)
    made = []
    for size in (4, 3):
        ids = torch.randint(3, PLACEHOLDER, (size, 9), generator=draw)
        ids[:, 1 : 1 + PATCHES] = PLACEHOLDER
        images = like + 0.5 * torch.randn(size, 3, 8, 8, generator=draw)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images})
    return made


def make_image_tasks(root: Path, names: tuple[str, ...] = tuple(WAYS)) -> ImageTasks:
    """Write the base and the tasks' adapters into a folder."""
    import peft

    t = quiet_transformers()
    torch.manual_seed(0)
    save_quietly(llava(t), root / "base")
    for seed, name in enumerate(names):
        torch.manual_seed(seed + 1)
        model = t.LlavaForConditionalGeneration.from_pretrained(root / "base")
        options = {"r": 2, "lora_alpha": 4, "target_modules": LANGUAGE, "init_lora_weights": False}
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options | WAYS[name]))
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "modules_to_save.default" in key:
                    parameter += 0.3 * torch.randn_like(parameter)
        save_quietly(adapted, root / name)
    return ImageTasks(root)
