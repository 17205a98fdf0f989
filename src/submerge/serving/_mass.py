"""MASS in use: each call routes, runs every sample with the updates of its tasks, and names its answer."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import pad

from submerge.errors import Problem, RequestError, few
from submerge.gating import Gate, GatedModel, SampleAssignment, best_head
from submerge.methods.mass import RoutingSettings, routes_on_base
from submerge.routing import (
    BatchOrder,
    GatedUpdates,
    Router,
    RouterCalibration,
    RouterReference,
    Routing,
    RoutingRequest,
    order_of,
)
from submerge.serving._attach import attach_bank
from submerge.serving._calibration_file import read_calibration
from submerge.serving._clip import HEAD
from submerge.serving._controller import Call, Controller
from submerge.serving._folder import Folder, copy_folder
from submerge.serving._labels import named, tell_labels
from submerge.serving._routed_model import input_count
from submerge.serving._settings import with_settings

__all__ = ["MassController", "calibrated", "rules_arguments"]


def _route(self: Any, *, details: bool = False, **inputs: Any) -> Routing:
    """Return the choice of tasks for each input, without answering.

    It takes what the model takes, and what a `RoutingRequest` says: `task`, `group`, `form` and `prior`.
    With `details` there is the evidence at each site, too.
    """
    router: Router = self.router
    request = RoutingRequest.taken_from(inputs)
    routing = router.route(self, inputs, input_count(self, inputs), request, details=details)
    if router.replay is not None:
        router.replay.take()
    return routing


class MassController(Controller):
    """Routes the inputs of a call, runs them by their tasks, and names the outputs by the tasks' labels.

    Examples:
        >>> from submerge.serving import CONTROLLERS, MassController
        >>> MassController in CONTROLLERS.values()
        True
    """

    members: ClassVar[Mapping[str, Any]] = {"route": _route}
    saves_weights: ClassVar[bool] = False

    def __init__(self, model: Any, folder: Folder, gated: GatedModel) -> None:
        rules = RoutingSettings.from_mapping(folder.settings, **rules_arguments(model, folder))
        settings = {**folder.settings, "pooling": rules.pooling.value, "score": rules.score.value}
        self.path, self.gated = folder.path.absolute(), gated
        rules, calibration, reference = calibrated(folder, rules)
        self.router = Router(folder.tasks, settings, rules, GatedUpdates(gated), calibration, reference)

    @classmethod
    def configured(cls, folder: Folder, settings: Mapping[str, Any]) -> Folder:
        return with_settings(folder, settings)

    @classmethod
    def attach(
        cls, model: Any, folder: Folder, gate: Gate, names: Mapping[str, str], *, heads: bool, partial: bool
    ) -> MassController:
        on_base = routes_on_base(folder.settings)
        gated = attach_bank(model, folder, gate, names, heads=heads, partial=partial, base_resident=on_base)
        controller = cls(model, folder, gated)
        model.router = controller.router
        if gated.heads is not None and _is_classifier(model):
            tell_labels(model.config, gated.heads.widths, folder.tasks)
        return controller

    def save(self, folder: Path) -> None:
        """Copy the served folder: the model that runs has the base's weights, and its folder the merge's."""
        copy_folder(self.path, folder)

    def request(self, arguments: MutableMapping[str, Any]) -> RoutingRequest:
        return RoutingRequest.taken_from(arguments)

    def begin(self, model: Any, inputs: dict[str, Any], request: RoutingRequest) -> Call:
        for name, hint in (
            ("labels", "a routed model does not train; compare its logits yourself"),
            ("past_key_values", "use generate, which routes once"),
        ):
            if inputs.get(name) is not None:
                raise RequestError(Problem(f"{name} cannot be given", type(model).__name__, hint))
        return self._begin(model, inputs, request, generates=False)

    def begin_generate(self, model: Any, inputs: dict[str, Any], request: RoutingRequest) -> Call:
        return self._begin(model, inputs, request, generates=True)

    def _begin(self, model: Any, inputs: dict[str, Any], request: RoutingRequest, *, generates: bool) -> Call:
        size = input_count(model, inputs)
        routing = self.router.route(model, inputs, size, request)
        order, replay = order_of(routing), self.router.replay
        outputs = replay.take() if replay else None
        resident = replay.shared if replay and outputs is not None else frozenset()
        assignment = SampleAssignment(order.spans, order.leads, resident)
        sorted_inputs = order.sorted(inputs, size)
        if generates:  # every block runs, and fills its cache
            self._sort_beside(model, sorted_inputs, order)
            restore = functools.partial(_generated, order)
            return Call(sorted_inputs, assignment, restore, functools.partial(_padded, model))
        if order.order is not None or replay is not None:
            _forget_cache(model, sorted_inputs)
        context: AbstractContextManager[None] = nullcontext()
        if replay is not None:
            context = replay.playing(outputs, order.order, size)

        def restore_forward(out: Any) -> Any:
            return self._answer(model, order.restored(out, size), routing, is_named=request.task is not None)

        return Call(sorted_inputs, assignment, restore_forward, context=context)

    def _sort_beside(self, model: Any, inputs: dict[str, Any], order: BatchOrder) -> None:
        """Let what tells the samples of a `generate` apart by their numbers have the order of the run."""
        cache, allowed = inputs.get("past_key_values"), inputs.get("prefix_allowed_tokens_fn")
        if cache is not None and self.gated.sequential and len(order.spans) > 1:
            what = "past_key_values of samples that run task by task, as this model's do"
            raise RequestError(Problem(what, type(model).__name__, "give inputs of one task, or no cache"))
        if cache is not None and order.order is not None:
            cache.reorder_cache(order.order)
        if allowed is not None:
            places = order.order
            inputs["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(self._number(places, row), ids)

    def _number(self, order: torch.Tensor | None, row: int) -> int:
        """Return the number of a sample in the caller's batch, of that of a run in the order."""
        assignment = self.gated.gate.assignment
        window = None if assignment is None else assignment.window
        row += 0 if window is None else window.start
        return row if order is None else int(order[row])

    def _answer(self, model: Any, out: Any, routing: Routing, *, is_named: bool) -> Any:
        """Return an output with its routing, tasks, shares and, of classifiers, labels."""
        if not isinstance(out, MutableMapping):
            return out
        heads, names = self.gated.heads, self.router.names
        if heads is not None and heads.competing and "logits" in out:
            how = "max" if is_named else self.router.rules.heads
            out["logits"], best = best_head(out["logits"], len(names), how)
            routing = routing if is_named else routing.led_by(best)
        out.routing, out.tasks, out.coefficients = routing, routing.tasks, routing.coefficients  # type: ignore[attr-defined]
        if "logits" in out and _is_classifier(model):
            width = out["logits"].shape[-1]
            widths = [width] * len(names) if heads is None else heads.widths
            out.labels = named(out["logits"], routing.lead.tolist(), widths, self.router.tasks)  # type: ignore[attr-defined]
        return out


def calibrated(
    folder: Folder, rules: RoutingSettings
) -> tuple[RoutingSettings, RouterCalibration | None, RouterReference | None]:
    """Return what the folder knows by inputs, where it counts, and the rules beside it.

    Raises `RequestError` where it is of another first pass than that of the rules.
    """
    calibration, reference = read_calibration(folder) if rules.calibration else (None, None)
    if reference is not None:
        rules = replace(rules, reference=False)  # of noise
    for found in (calibration, reference):
        if found is not None:
            found.check(rules.first_pass_words, str(folder.path))
    return rules, calibration, reference


def rules_arguments(model: Any, folder: Folder) -> dict[str, bool]:
    """Return what `RoutingSettings.from_mapping` must know of a folder's model, which may have no values."""
    return {
        "images": model.main_input_name == "pixel_values",
        "low_rank": folder.low_rank,
        "decoder": _is_decoder(model.config),
    }


def _is_decoder(config: Any) -> bool:
    """Return whether the class of a configuration, which has its head, generates by a decoder alone."""
    import transformers

    kind = getattr(transformers, (config.architectures or [""])[0], None)
    return kind is not None and bool(kind.can_generate()) and not getattr(config, "is_encoder_decoder", False)


def _is_classifier(model: Any) -> bool:
    return type(model).__name__.endswith("Classification") or hasattr(model, HEAD)


def _forget_cache(model: Any, inputs: dict[str, Any]) -> None:
    """Let a forward return no cache: it would have the order of the run, and lack the blocks of a replay."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False


def _generated(order: BatchOrder, out: Any) -> Any:
    """Return generated sequences, and what is with them, in the order of the inputs.

    Of each input there may be several.
    """
    rows = (out if isinstance(out, torch.Tensor) else out["sequences"]).shape[0]
    cache = None if isinstance(out, torch.Tensor) else out.get("past_key_values")
    if cache is not None and order.order is not None:
        cache.reorder_cache(order.restored(torch.arange(rows), rows))
    return order.restored(out, rows)


def _padded(model: Any, parts: Sequence[Any]) -> Any:
    """Return sequences of several runs as one tensor, filled up with the padding token.

    Scores and others of a run are of its own steps, so that there are none of all runs.
    """
    sequences = [part if isinstance(part, torch.Tensor) else part["sequences"] for part in parts]
    longest = max(one.shape[1] for one in sequences)
    token = model.generation_config.pad_token_id
    token = token if token is not None else model.generation_config.eos_token_id or 0
    token = token[0] if isinstance(token, list) else token
    joined = torch.cat([pad(one, (0, longest - one.shape[1]), value=token) for one in sequences])
    if isinstance(parts[0], torch.Tensor):
        return joined
    if others := [name for name in parts[0] if name != "sequences"]:
        what = f"samples of several tasks run one after another in {type(model).__name__}"
        warnings.warn(f"{what}: the output has no {few(others, 9)}, but for inputs of one task", stacklevel=2)
    return type(parts[0])(sequences=joined)
