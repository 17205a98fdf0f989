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

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from submerge.errors import Problem, RequestError, few
from submerge.gating import head_width
from submerge.methods.mass import RoutingSettings
from submerge.routing import Router as TaskRouter
from submerge.routing import Routing, RoutingRequest, TaskUpdates
from submerge.serving._calibration_file import parse_calibration

HERE = Path(__file__).resolve().parent


class AdapterRouter:
    """Finds the tasks of inputs, as the served model that was exported does.

    A pass of the base shows the inputs of its linear maps, and the tasks' updates read these by the rows V_t
    in `router.safetensors`. Heads are not looked at here: those of a model with heads are by `Tasks`.
    """

    def __init__(self, folder: str | Path = HERE, heads: TaskHeads | None = None) -> None:
        folder = Path(folder)
        self.settings: dict[str, Any] = json.loads((folder / "router.json").read_text(encoding="utf-8"))
        self.tasks: list[str] = self.settings["tasks"]
        prefix = f"{self.settings['part']}." if heads is not None and self.settings["part"] else ""
        updates = AdapterUpdates(folder, self.settings["modules"], len(self.tasks), prefix, heads)
        rules = RoutingSettings.from_mapping(self.settings["gate"], **self.settings["model"])
        self.score = rules.score.value
        calibrated = folder / "calibration.safetensors"
        calibration, reference = parse_calibration(calibrated) if calibrated.exists() else (None, None)
        names = [{"name": task} for task in self.tasks]
        self.router = TaskRouter(names, self.settings["gate"], rules, updates, calibration, reference)

    def __call__(self, model: Any, **inputs: Any) -> str:
        """Return the task of inputs that are of one task, by the mean of their scores."""
        return the_task(self.route(model, **{"group": "batch", **inputs}))

    def scores(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Return a score [B, T] for each input and task: the larger the better."""
        return self.route(model, **inputs).scores

    @torch.no_grad()
    def route(self, model: Any, **inputs: Any) -> Routing:
        """Return the choice for each input, with the scores.

        `model` is the base, or a PeftModel on it. Beside its inputs there may be `task`, `group`, `form` and
        `prior`, as a `RoutingRequest` has them.
        """
        request = RoutingRequest.taken_from(inputs)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        given = next(
            (inputs[name] for name in (base.main_input_name, "inputs_embeds") if name in inputs), None
        )
        if given is None:
            what = f"there are no {base.main_input_name} to route: found {few(inputs) or 'no inputs'}"
            raise RequestError(Problem(what, type(base).__name__, "give what the base's processor returns"))
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
            return self.router.route(base, inputs, len(given), request)


def the_task(routing: Routing) -> str:
    """Return the task of inputs that are of one task."""
    if len(found := sorted(set(routing.tasks))) > 1:
        what = f"the inputs are of several tasks: {few(found)}"
        raise RequestError(Problem(what, "", "give those of one task at a time"))
    return routing.tasks[0]


Router = AdapterRouter
"""Its earlier name."""


@dataclass(frozen=True)
class Rows:
    """V_t of all tasks one below the other [R, n], the singular values [R], and where each task's are."""

    down: torch.Tensor
    values: torch.Tensor
    places: Mapping[int, slice]


class AdapterUpdates(TaskUpdates):
    """The tasks' updates in a model of which no adapter is active.

    `prefix` is what the model has before the base's names of its modules.
    """

    def __init__(
        self, folder: Path, modules: Sequence[str], count: int, prefix: str, heads: TaskHeads | None
    ) -> None:
        tensors = load_file(folder / "router.safetensors")
        self._rows = {prefix + module: self._of_module(tensors, module, count) for module in modules}
        self._heads = heads

    @staticmethod
    def _of_module(tensors: Mapping[str, torch.Tensor], module: str, count: int) -> Rows:
        numbers = [t for t in range(count) if f"{module}:{t}" in tensors]
        parts = [tensors[f"{module}:{t}"] for t in numbers]
        ends = [sum(map(len, parts[:k])) for k in range(len(parts) + 1)]
        places = {t: slice(*ends) for t, ends in zip(numbers, pairwise(ends), strict=True)}
        values = torch.cat([tensors[f"{module}:{t}:values"] for t in numbers])
        return Rows(torch.cat(parts), values, places)

    @property
    def factors(self) -> Mapping[str, Rows]:
        """Those of linear maps that are looked at, by the module's name in the model."""
        return self._rows

    @property
    def head_widths(self) -> Sequence[int] | None:
        """How many outputs the head of each task has; None where they are no evidence of the task."""
        return None if self._heads is None else self._heads.widths

    def left_out(self, *, every_head: bool = False) -> AbstractContextManager[None]:
        """Return a context in which the model has the outputs of all heads, if these are asked for."""
        return self._heads.side_by_side() if every_head and self._heads is not None else nullcontext()


class TaskHeads:
    """The tasks' heads at the places of a model, which has those of one task at a time.

    `module` is what ends in a head's outputs, where it is all of the head, and else None.
    """

    def __init__(
        self, model: Any, heads: Mapping[str, Mapping[str, torch.Tensor]], module: str | None
    ) -> None:
        self.model, self.heads, self.module = model, heads, module

    @property
    def widths(self) -> list[int] | None:
        """How many outputs each task's head has; None where a head is of several modules."""
        if self.module is None:
            return None
        return [head_width(self._inside(head)) for head in self.heads.values()]

    def use(self, task: str) -> None:
        """Let the model have the head of a task."""
        for name, values in self.heads[task].items():
            module, _, parameter = name.rpartition(".")
            place = self.model.get_submodule(module)
            like = getattr(place, parameter)
            setattr(place, parameter, torch.nn.Parameter(values.to(like), requires_grad=False))

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Let the model end in the outputs of all heads, filled up with −inf to the widest."""
        module, widest = self.model.get_submodule(self.module), max(self.widths or ())
        plain = module.forward

        def outputs(*args: Any, **kwargs: Any) -> torch.Tensor:
            module.forward = plain
            each = []
            for head in map(self._inside, self.heads.values()):
                values = {name: value.to(self.model.device, self.model.dtype) for name, value in head.items()}
                found = torch.func.functional_call(module, values, args, kwargs)
                each.append(torch.nn.functional.pad(found, (0, widest - found.shape[-1]), value=-torch.inf))
            module.forward = outputs
            return torch.cat(each, dim=-1)

        module.forward = outputs
        try:
            yield
        finally:
            module.forward = plain

    def _inside(self, head: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a head's parameters by their names in the module, in its order."""
        order = [name for name, _ in self.model.get_submodule(self.module).named_parameters()]
        return {name: head[f"{self.module}.{name}"] for name in order}


class Tasks:
    """The base with the adapters and the heads of all tasks, of which one is active at a time.

    `model` answers; `adapted` is the part of it that has adapters, as a PeftModel.
    """

    def __init__(self, folder: str | Path = HERE, base: str | None = None) -> None:
        import transformers
        from peft import PeftModel
        from transformers.utils import logging

        folder = Path(folder)
        settings: dict[str, Any] = json.loads((folder / "router.json").read_text(encoding="utf-8"))
        self.base = base or settings["base"]
        level = logging.get_verbosity()
        logging.set_verbosity(40)  # errors alone: the base lacks the heads
        self.model = getattr(transformers, settings["architecture"]).from_pretrained(
            self.base, revision=None if base else settings["revision"]
        )
        logging.set_verbosity(level)
        part = self.model.get_submodule(settings["part"])
        places = {task: folder / task for task in settings["tasks"]}
        files = {task: place / "head.safetensors" for task, place in places.items()}
        heads = {task: load_file(file) if file.exists() else {} for task, file in files.items()}
        self.heads = TaskHeads(self.model, heads, settings["head"])
        self.router = AdapterRouter(folder, self.heads)
        first, *others = places.values()
        self.adapted: Any = PeftModel.from_pretrained(part, first, adapter_name="task0")
        for number, place in enumerate(others, 1):
            self.adapted.load_adapter(place, adapter_name=f"task{number}")
        self.model.eval()

    def use(self, task: str) -> None:
        """Let the model be that of a task."""
        self.adapted.set_adapter(f"task{self.router.tasks.index(task)}")
        self.heads.use(task)

    def route(self, **inputs: Any) -> Routing:
        """Return the choice for each input, with the scores; it takes what `AdapterRouter.route` does."""
        with self.adapted.disable_adapter():
            return self.router.route(self.model, **inputs)

    def find(self, **inputs: Any) -> str:
        """Return the task of inputs that are of one task, and let the model be that of it."""
        task = the_task(self.route(**{"group": "batch", **inputs}))
        self.use(task)
        return task

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> tuple[str, Any]:
        """Return the task of the inputs, and the model's output as this task.

        Beside them there may be what says more of the task: `task` itself, `form` and `prior`.
        """
        task = self.find(**inputs)
        RoutingRequest.taken_from(inputs)
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
            task = self.tasks.find(**inputs)
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
        except (OSError, ValueError, RequestError) as error:  # as an image that cannot be read
            sys.exit(f"error: {item}: {error}")


if __name__ == "__main__":
    main()
