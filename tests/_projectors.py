"""A tiny Llava, adapters of it that PEFT saved with projectors of their own, and images with questions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _models import quiet_transformers
from calibrate.helpers_processors import llava, llava_processor
from submerge.deferred import quietly

TASKS = ("red", "blue")
PROJECTOR = "multi_modal_projector"
LANGUAGE = r".*language_model.*(?:q|v|down)_proj"


@dataclass(frozen=True)
class LlavaTasks:
    """The base in `base`, and of each task an adapter, a checkpoint that it makes, and its data."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def recipe(self, method: str, *names: str, data: bool = True, **more: Any) -> dict[str, Any]:
        """Return a recipe of the adapters of some tasks (all by default), or of models `TASK:FOLDER`."""
        entries: list[dict[str, Any]] = []
        for name in names or TASKS:
            task, _, folder = name.partition(":")
            entry = {"model": str(self.path(folder or f"{task}-lora")), "name": task}
            entries.append(entry | ({"data": str(self.path(f"{task}.jsonl"))} if data else {}))
        return {"merge_method": method, "base_model": str(self.path("base")), "models": entries} | more

    def load(self, name: str = "base") -> Any:
        """Return the model of a folder."""
        with quietly(quiet_transformers().logging):
            return quiet_transformers().LlavaForConditionalGeneration.from_pretrained(self.path(name)).eval()

    def adapted(self, name: str) -> Any:
        """Return what PEFT makes of the base and the adapter of a folder."""
        from peft import PeftModel

        with quietly(quiet_transformers().logging), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(self.load(), self.path(name))
            return model.merge_and_unload().eval()

    def adapt(self, folder: str, seed: int, **options: Any) -> None:
        """Save an adapter of the base; all that it has is random."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        settings = {"r": 2, "lora_alpha": 4, "target_modules": LANGUAGE, "init_lora_weights": False}
        with quietly(quiet_transformers().logging):
            adapted = get_peft_model(self.load(), LoraConfig(**settings | options))
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "modules_to_save" in name:
                        parameter += 0.3 * torch.randn_like(parameter)
            adapted.save_pretrained(self.path(folder))

    def save(self, model: Any, folder: str) -> None:
        """Save a whole model, with the processor of the base."""
        with quietly(quiet_transformers().logging):
            model.save_pretrained(self.path(folder))
        llava_processor().save_pretrained(self.path(folder))

    def inputs(self, task: str, *places: int) -> Mapping[str, torch.Tensor]:
        """Return some rows of a task's data as the base's processor encodes them, padded on the left."""
        from PIL import Image

        lines = self.path(f"{task}.jsonl").read_text().splitlines()
        rows = [json.loads(lines[place]) for place in places or (0,)]
        images = [Image.open(self.path(row["image"])) for row in rows]
        processor = llava_processor()
        processor.tokenizer.padding_side = "left"
        texts = [f"USER : <image> {row['text']} ASSISTANT :" for row in rows]
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


def make_llava_tasks(root: Path, rows: int = 6) -> LlavaTasks:
    """Return the base, an adapter of each task with a projector of its own, and data with images."""
    made = LlavaTasks(root)
    torch.manual_seed(0)
    model = llava()
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    made.save(model, "base")
    for number, task in enumerate(TASKS):
        made.adapt(f"{task}-lora", number + 1, modules_to_save=[PROJECTOR])
        write_data(made, task, number, rows)
    return made


def write_data(made: LlavaTasks, task: str, channel: int, rows: int) -> None:
    """Write images that are bright in one channel, with questions of different lengths."""
    from PIL import Image

    lines = []
    for row in range(rows):
        draw = torch.Generator().manual_seed(100 * channel + row)
        pixels = torch.randint(0, 60, (16, 16, 3), generator=draw, dtype=torch.uint8)
        pixels[..., channel] += 180
        Image.fromarray(pixels.numpy()).save(made.path(f"{task}-{row}.png"))
        lines.append({"image": f"{task}-{row}.png", "text": " ".join("abcdefgh"[: row % 5 + 1])})
    made.path(f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
