"""Projectors in use: each image runs through those of the tasks that it is similar to (CPM of MAny).

All is decided inside of the projector's own call, from what it is given. The controller tells it which of its
rows are one image, which projectors a caller names, and how similar the texts are, where these count.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import one_hot

from submerge.algebra import similarity_weights
from submerge.errors import Problem, RequestError, few
from submerge.gating import (
    Gate,
    GatedModel,
    ModuleInputs,
    Observer,
    PrototypeAssignment,
    PrototypeBranches,
    StopForward,
    branch_module,
    observe,
)
from submerge.routing import RoutingRequest
from submerge.serving._attach import check_names
from submerge.serving._controller import Call, Controller
from submerge.serving._folder import Folder, copy_beside
from submerge.serving._projector_folder import ProjectorFolder, open_projector_folder
from submerge.serving._projector_inputs import MediaInputs, media_inputs, text_vectors
from submerge.serving._routed_model import input_count

__all__ = ["ProjectorController"]


class _AtLanguageModel(Observer):
    """Ends a pass where the language model begins."""

    def on_input(self, name: str, module: Any, x: Any) -> None:
        raise StopForward


@torch.no_grad()
def _shares(self: Any, **inputs: Any) -> torch.Tensor:
    """Return each projector's share [inputs, K] of what the language model is given of an input.

    It takes what the model takes; the language model does not run.
    """
    controller: ProjectorController = self.controller
    request = controller.request(inputs)
    call = controller.begin(self, {name: x for name, x in inputs.items() if x is not None}, request)
    assert isinstance(call.assignment, PrototypeAssignment)
    with (
        controller.gated.gate.over(call.assignment),
        observe({"": self.get_decoder()}, _AtLanguageModel()),
    ):
        self(**call.inputs)
    return controller.shares(call.assignment)


class ProjectorController(Controller):
    """Tells the projector what is known of a call's inputs, and names its answer.

    `tasks` are all tasks' names, and `projectors` those of each of K groups of tasks, which share one.

    Examples:
        >>> from submerge.serving import CONTROLLERS, ProjectorController
        >>> ProjectorController in CONTROLLERS.values()
        True
    """

    members: ClassVar[Mapping[str, Any]] = {
        "shares": _shares,
        "tasks": property(lambda self: self.controller.tasks),
        "projectors": property(lambda self: self.controller.projectors),
    }

    def __init__(self, folder: ProjectorFolder, gated: GatedModel) -> None:
        self.path, self.tasks, self.projectors = folder.path.absolute(), folder.names, folder.groups
        self.gated, self.rules = gated, folder.rules
        self.questions = folder.question_scores

    @classmethod
    def open(cls, path: Path) -> ProjectorFolder:
        return open_projector_folder(path)

    @classmethod
    def configured(cls, folder: Folder, settings: Mapping[str, Any]) -> ProjectorFolder:
        assert isinstance(folder, ProjectorFolder)
        return folder.configured(settings)

    @classmethod
    def attach(
        cls, model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
    ) -> ProjectorController:
        assert isinstance(folder, ProjectorFolder)
        check_names(model, folder, names, partial=False)
        path = _module_path(folder, names)
        module = model.get_submodule(path)
        own = {names[name].removeprefix(f"{path}."): name for name in folder.updated}
        parameters = dict(module.named_parameters())
        if own.keys() != parameters.keys():
            what = f"{path} has parameters that the bank lacks: {few(parameters.keys() - own.keys())}"
            raise RequestError(Problem(what, str(folder.path), "merge again"))
        sets = [
            {local: tensors[name].to(parameters[local].dtype) for local, name in own.items()}
            for tensors in folder.projectors
        ]
        rules = folder.rules
        branches = PrototypeBranches(
            gate,
            sets,
            folder.image_scores,
            temperature=rules.temperature,
            top=rules.top,
            by_position=rules.pooling == "position",
        )
        branch_module(module, branches)
        return cls(folder, GatedModel(gate))

    def save(self, folder: Path) -> None:
        """Copy all but the checkpoint: bank, manifest, processor."""
        copy_beside(self.path, folder)

    def request(self, arguments: MutableMapping[str, Any]) -> RoutingRequest:
        return RoutingRequest(task=arguments.pop("task", None))

    def begin(self, model: Any, inputs: dict[str, Any], request: RoutingRequest) -> Call:
        media = media_inputs(model, inputs)
        forced = self._forced(model, inputs, request)
        assignment = PrototypeAssignment([self._inputs(model, inputs, one, forced) for one in media])
        return Call(inputs, assignment, partial(self._answer, assignment))

    def begin_generate(self, model: Any, inputs: dict[str, Any], request: RoutingRequest) -> Call:
        return self.begin(model, inputs, request)

    def _forced(self, model: Any, inputs: dict[str, Any], request: RoutingRequest) -> torch.Tensor | None:
        """Return the weights [B, K] of samples whose tasks are named; None where they are to be found."""
        if request.task is None:
            return None
        numbers = request.tasks(self.tasks, input_count(model, inputs)) or []
        groups = [self._group(self.tasks[number]) for number in numbers]
        return one_hot(torch.tensor(groups), len(self.projectors)).double()

    def _group(self, task: str) -> int:
        return next(k for k, names in enumerate(self.projectors) if task in names)

    def _inputs(
        self, model: Any, inputs: dict[str, Any], media: MediaInputs, forced: torch.Tensor | None
    ) -> ModuleInputs:
        """Return what the projector is told of the inputs of one kind."""
        known = partial(ModuleInputs, media.count, media.rows, media.positions)
        ids = inputs.get("input_ids")
        if forced is not None:
            return known(weights=media.of_samples(forced, ids))
        if self.questions is None:
            return known()
        of_texts = self.questions.scores(text_vectors(model, inputs))
        similarity = media.of_samples(of_texts, ids)
        if self.rules.key == "both":
            return known(similarity=similarity)
        rules = self.rules
        return known(weights=similarity_weights(similarity, temperature=rules.temperature, top=rules.top))

    def shares(self, assignment: PrototypeAssignment) -> torch.Tensor:
        """Return the weights that a pass used, [inputs, K] in float32."""
        weights = assignment.weights[: len(assignment.calls) or None]  # a `generate` may repeat calls
        return torch.cat(weights).float() if weights else torch.zeros(0, len(self.projectors))

    def _answer(self, assignment: PrototypeAssignment, out: Any) -> Any:
        """Return an output with each input's shares, and the tasks of its leading projector."""
        if isinstance(out, MutableMapping):
            shares = self.shares(assignment)
            out.shares = shares  # type: ignore[attr-defined]
            out.tasks = ["+".join(self.projectors[k]) for k in shares.argmax(1).tolist()]  # type: ignore[attr-defined]
        return out


def _module_path(folder: ProjectorFolder, names: Mapping[str, str]) -> str:
    """Return the path of the projector in the model, whose names of the folder's tensors are `names`."""
    paths: Sequence[str] = sorted(
        {names[name].rsplit(".", folder.local_name(name).count(".") + 1)[0] for name in folder.updated}
    )
    if len(paths) > 1:
        what = f"the parameters of {folder.rules.module} are of several modules: {few(paths)}"
        raise RequestError(Problem(what, str(folder.path), "merge again"))
    return paths[0]
