"""Route inputs to LoRA adapters and answer them, with transformers, PEFT and safetensors alone.

    python route.py "a text" "another text"     # paths of images, where the model takes images
    python route.py --base PLACE "a text"       # where the base is not where it was

In Python:

    from route import Tasks
    tasks = Tasks()
    task, output = tasks(**inputs)              # inputs of one task, as the base's processor gives them

A server with many adapters, such as vLLM's, takes the name of the adapter with each request: run the router
on the base model, and send the name that it returns.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


class AdapterRouter:
    """Finds the task whose update fits an input best, by the rows V_t that it reads one layer's inputs with.

    Of the mean input z of a linear map, the score "residual" is ‖z − V_tᵀ V_t z‖, and "leading" is the share
    of ‖V_t z‖² that falls on the trailing half of the singular directions. "null_space" is the mean over
    tokens x of (1 − ‖V_t x‖² / ‖x‖²)^½, less the (1 − r/n)^½ of noise. The smaller one fits better.
    """

    def __init__(self, folder: str | Path = HERE) -> None:
        self.settings: dict[str, Any] = json.loads((Path(folder) / "router.json").read_text(encoding="utf-8"))
        self.tasks: list[str] = self.settings["tasks"]
        self.modules: list[str] = self.settings["modules"]
        self.score: str = self.settings["score"]
        self.rows = load_file(Path(folder) / "router.safetensors")

    def __call__(self, model: Any, **inputs: Any) -> str:
        """Return the task of the inputs, by the mean of their scores."""
        return self.tasks[int(self.scores(model, **inputs).mean(0).argmax())]

    @torch.no_grad()
    def scores(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Return a score [B, T] for each input and task: z-scores of −r, averaged over what was looked at.

        `model` is the base, or a PeftModel on it.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        mask = inputs.get("attention_mask")
        sites: list[tuple[torch.Tensor, list[torch.Tensor]]] = []  # an input, and the r of maps that take it

        def observe(name: str, x: torch.Tensor) -> None:
            # maps that share an input are one site, but for adapters, each of whose maps has rows of its own
            if self.score != "residual" or not sites or sites[-1][0].data_ptr() != x.data_ptr():
                sites.append((x, []))  # the input is held, so that no other takes its place in memory
            weights = torch.ones(x.shape[:2]) if mask is None else mask
            weights = weights.to(x).unsqueeze(-1)
            z = (x * weights).float()  # [B, L, n]
            if self.score != "null_space":
                z = z.sum(1) / weights.sum(1)
            residuals = [self._residual(name, task, z) for task in range(len(self.tasks))]
            sites[-1][1].append(torch.stack(residuals, dim=-1))

        hooks = [
            base.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: observe(name, args[0])
            )
            for name in self.modules
        ]
        run = base.get_encoder() if base.config.is_encoder_decoder else base
        try:
            if hasattr(model, "disable_adapter"):
                with model.disable_adapter():
                    run(**inputs)
            else:
                run(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(
            [z.mean(0) for z in self._zscores([torch.stack(residuals) for _, residuals in sites])]
        ).mean(0)

    def _zscores(self, sites: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return −r [maps, B, T] of each site as z-scores; of ratios, with one deviation for all maps."""
        variances = [r.var(-1, keepdim=True) for r in sites]
        if self.score == "null_space":
            variances = [torch.cat(variances).mean(0)] * len(sites)
        return [
            (r.mean(-1, keepdim=True) - r) / (variance.sqrt() + 1e-6)
            for r, variance in zip(sites, variances, strict=True)
        ]

    def _residual(self, name: str, task: int, z: torch.Tensor) -> torch.Tensor:
        """Return r_t [B] of mean inputs z [B, n] of a map: what the score makes small where the task fits.

        For the null-space ratio, z [B, L, n] are tokens, with zeros where there is none.
        """
        rows = self.rows.get(f"{name}:{task}", torch.zeros(0, z.shape[-1])).to(z)  # V_t [k, n]
        energies = (z @ rows.T).double().square()  # [.., k]
        energy, trailing = z.double().square().sum(-1), len(rows) // 2
        if self.score == "null_space":
            there = energy > 0
            ratios = (1 - energies.sum(-1) / energy.where(there, 1)).clamp(0, 1).sqrt()
            apart = (ratios - (1 - len(rows) / z.shape[-1]) ** 0.5) * there
            ratio: torch.Tensor = apart.sum(1) / there.sum(1)
            return ratio
        if self.score == "residual":
            return (energy - energies.sum(-1)).clamp(min=0).sqrt()
        if not trailing:  # one direction has no halves: what evenly spread energy would give
            return torch.ones_like(energy)
        share = energies[:, -trailing:].sum(-1) / energies.sum(-1).clamp(min=1e-30)
        return (share * len(rows) / trailing).sqrt()


Router = AdapterRouter
"""Its earlier name."""


class Tasks:
    """The base with the adapters and the heads of all tasks, of which one is active at a time.

    `model` answers; `adapted` is the part of it that has adapters, as a PeftModel.
    """

    def __init__(self, folder: str | Path = HERE, base: str | None = None) -> None:
        import transformers
        from peft import PeftModel
        from transformers.utils import logging

        self.router = AdapterRouter(folder)
        settings, folder = self.router.settings, Path(folder)
        self.base = base or settings["base"]
        level = logging.get_verbosity()
        logging.set_verbosity(40)  # errors alone: the base lacks the heads
        self.model = getattr(transformers, settings["architecture"]).from_pretrained(
            self.base, revision=None if base else settings["revision"]
        )
        logging.set_verbosity(level)
        part = self.model.get_submodule(settings["part"])
        places = {task: folder / task for task in self.router.tasks}
        self.adapted = PeftModel.from_pretrained(part, places[self.router.tasks[0]], adapter_name="task0")
        for number, task in enumerate(self.router.tasks[1:], 1):
            self.adapted.load_adapter(places[task], adapter_name=f"task{number}")
        files = {task: place / "head.safetensors" for task, place in places.items()}
        self.heads = {task: load_file(file) if file.exists() else {} for task, file in files.items()}
        self.model.eval()

    def use(self, task: str) -> None:
        """Let the model be that of a task."""
        self.adapted.set_adapter(f"task{self.router.tasks.index(task)}")
        for name, values in self.heads[task].items():
            module, _, parameter = name.rpartition(".")
            head = torch.nn.Parameter(values.to(self.model.device), requires_grad=False)
            setattr(self.model.get_submodule(module), parameter, head)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> tuple[str, Any]:
        """Return the task of the inputs, and the model's output as this task."""
        task = self.router(self.adapted, **inputs)
        self.use(task)
        return task, self.model(**inputs)


class Answers:
    """Texts, or images of which the paths are given, to the names of their tasks and an answer in words."""

    def __init__(self, tasks: Tasks, length: int = 40) -> None:
        import transformers

        self.tasks, self.length = tasks, length
        self.images = tasks.model.main_input_name == "pixel_values"
        kind = transformers.AutoImageProcessor if self.images else transformers.AutoTokenizer
        self.processor = kind.from_pretrained(tasks.base)

    def __call__(self, item: str) -> tuple[str, str]:
        """Return the task of an input, and what the model answers."""
        inputs = self._inputs(item)
        if self.tasks.model.can_generate():
            task = self.tasks.router(self.tasks.adapted, **inputs)
            self.tasks.use(task)
            generated = self.tasks.model.generate(**inputs, max_new_tokens=self.length)[0]
            start = 0 if self.tasks.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            return task, str(self.processor.decode(generated[start:], skip_special_tokens=True))
        task, output = self.tasks(**inputs)
        if "logits" not in output:
            return task, ", ".join(f"{name} {tuple(x.shape)}" for name, x in output.items())
        logits = output.logits[0]
        if logits.shape[-1] == 1:
            return task, " ".join(f"{x:.4g}" for x in logits.flatten().tolist())
        labels = self.tasks.router.settings["labels"].get(task, {})
        return task, " ".join(labels.get(str(c), str(c)) for c in logits.argmax(-1).reshape(-1).tolist())

    def _inputs(self, item: str) -> dict[str, Any]:
        if not self.images:
            return dict(self.processor(item, return_tensors="pt"))
        return dict(self.processor(images=open_image(item, self.processor), return_tensors="pt"))


def open_image(path: str | Path, processor: Any) -> Any:
    """Return an image as its processor takes it: upright, and grey values of 16 bits as 8, the upper ones.

    Processors that convert images themselves get them as they are, others as many channels as they have
    means. Raises `ValueError` where an image has neither 8 nor 16 bits.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        values = np.asarray(image)
        if values.dtype.kind == "f" or not 0 <= values.min() <= values.max() < 1 << 16:
            raise ValueError(f"{path}: its values have neither 8 nor 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if getattr(processor, "do_convert_rgb", None):
        return image
    means = getattr(processor, "image_mean", None)
    count = len(means) if isinstance(means, (list, tuple)) else 3
    channels = image.convert("RGBA") if "transparency" in image.info else image
    return channels.convert({1: "L", 3: "RGB", 4: "RGBA"}[count])


def main() -> None:
    """Answer what the command line gives, or say which tasks there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("inputs", nargs="*", help="texts, or paths of images")
    parser.add_argument("--base", help="the base model, a folder or an id of the Hub")
    options = parser.parse_args()
    tasks = Tasks(base=options.base)
    if not options.inputs:
        print("tasks:", ", ".join(tasks.router.tasks))
        return
    answers = Answers(tasks)
    for item in options.inputs:
        try:
            print("\t".join((*answers(item), item)))
        except (OSError, ValueError) as error:  # an image that cannot be read
            sys.exit(f"error: {item}: {error}")


if __name__ == "__main__":
    main()
