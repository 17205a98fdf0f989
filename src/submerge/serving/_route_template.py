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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


class Router:
    """Finds the task whose update fits an input best, by what its rows read at one layer of the base.

    The score is "residual", what the rows do not read, or "leading", the share of what they read that falls
    on the lesser half of them.
    """

    def __init__(self, folder: str | Path = HERE) -> None:
        self.told: dict[str, Any] = json.loads((Path(folder) / "router.json").read_text(encoding="utf-8"))
        self.tasks: list[str] = self.told["tasks"]
        self.modules: list[str] = self.told["modules"]
        self.score: str = self.told["score"]
        self.rows = load_file(Path(folder) / "router.safetensors")

    def __call__(self, model: Any, **inputs: Any) -> str:
        """Return the task of the inputs, by the mean of their scores."""
        return self.tasks[int(self.scores(model, **inputs).mean(0).argmax())]

    @torch.no_grad()
    def scores(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Return a score [B, T] for each input and task: z-scores, averaged over what was looked at.

        `model` is the base, or a PeftModel on it.
        """
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
        run = plain.get_encoder() if plain.config.is_encoder_decoder else plain
        try:
            if hasattr(model, "disable_adapter"):
                with model.disable_adapter():
                    run(**inputs)
            else:
                run(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([torch.stack(found).mean(0) for _, found in seen]).mean(0)


class Tasks:
    """The base with the adapters and the heads of all tasks, of which one is active at a time.

    `model` answers; `adapted` is the part of it that has adapters, as a PeftModel.
    """

    def __init__(self, folder: str | Path = HERE, base: str | None = None) -> None:
        import transformers
        from peft import PeftModel
        from transformers.utils import logging

        self.router = Router(folder)
        told, folder = self.router.told, Path(folder)
        self.base = base or told["base"]
        level = logging.get_verbosity()
        logging.set_verbosity(40)  # errors alone: the base lacks the heads
        self.model = getattr(transformers, told["architecture"]).from_pretrained(
            self.base, revision=None if base else told["revision"]
        )
        logging.set_verbosity(level)
        part = self.model.get_submodule(told["part"])
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
            made = torch.nn.Parameter(values.to(self.model.device), requires_grad=False)
            setattr(self.model.get_submodule(module), parameter, made)

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
            made = self.tasks.model.generate(**inputs, max_new_tokens=self.length)[0]
            start = 0 if self.tasks.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            return task, str(self.processor.decode(made[start:], skip_special_tokens=True))
        task, output = self.tasks(**inputs)
        if "logits" not in output:
            return task, ", ".join(f"{name} {tuple(x.shape)}" for name, x in output.items())
        logits = output.logits[0]
        if logits.shape[-1] == 1:
            return task, " ".join(f"{x:.4g}" for x in logits.flatten().tolist())
        labels = self.tasks.router.told["labels"].get(task, {})
        return task, " ".join(labels.get(str(c), str(c)) for c in logits.argmax(-1).reshape(-1).tolist())

    def _inputs(self, item: str) -> dict[str, Any]:
        if not self.images:
            return dict(self.processor(item, return_tensors="pt"))
        from PIL import Image

        return dict(self.processor(images=Image.open(item).convert("RGB"), return_tensors="pt"))


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
        print("\t".join((*answers(item), item)))


if __name__ == "__main__":
    main()
