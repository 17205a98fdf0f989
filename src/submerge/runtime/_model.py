"""Transformers classes whose models find the tasks of their inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import torch

from submerge.errors import Problem, RequestError
from submerge.runtime._batch import cut, joined
from submerge.runtime._gate import UnsplitError
from submerge.runtime._heads import best_head
from submerge.runtime._router import Plan, Router, Routing
from submerge.serving._clip import HEAD
from submerge.serving._labels import named

__all__ = ["routed_class"]


def routed_class(kind: type) -> type:
    """Return a subclass of a transformers class whose forward and generate route first.

    It takes what the class takes, and besides `task` (a name, or one for each input: no routing), `group` (an
    id for each input, or "batch": inputs of one id get one decision), `form` ("single" or "pair", where
    the inputs do not show it) and `prior` (log-probabilities of the tasks [B, T], which count beside what
    the model finds). Outputs have `routing`, `tasks` and `coefficients` besides, those of classifiers also
    `labels`.
    """

    @functools.wraps(kind.forward)  # type: ignore[attr-defined]  # transformers looks at its signature
    def forward(
        self: Any,
        *args: Any,
        task: Any = None,
        group: Any = None,
        form: Any = None,
        prior: Any = None,
        **kwargs: Any,
    ) -> Any:
        plain = functools.partial(kind.forward, self)  # type: ignore[attr-defined]
        router: Router | None = getattr(self, "router", None)
        if router is None or router.gate.running:  # being made, or inside of a pass that is its own
            return plain(*args, **kwargs)
        told = {"task": task, "group": group, "form": form, "prior": prior}
        return _forward(self, router, plain, _bound(kind, args, kwargs), told)

    def generate(
        self: Any,
        inputs: Any = None,
        *args: Any,
        task: Any = None,
        group: Any = None,
        form: Any = None,
        prior: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Route once on the prompt, then generate as transformers does."""
        plain = functools.partial(kind.generate, self)  # type: ignore[attr-defined]
        if inputs is not None:
            kwargs[self.main_input_name] = inputs
        told = {"task": task, "group": group, "form": form, "prior": prior}
        return _generate(self, self.router, plain, args, kwargs, told)

    def route(
        self: Any,
        *,
        task: Any = None,
        group: Any = None,
        form: Any = None,
        prior: Any = None,
        details: bool = False,
        **inputs: Any,
    ) -> Routing:
        """Return the choice of tasks for each input, without answering."""
        router, size = cast(Router, self.router), _size(self, inputs)
        told = {"task": task, "group": group, "form": form, "prior": prior}
        found = router.route(self, inputs, size, details=details, **told)
        if router.replay is not None:
            router.replay.recorded = None
        return found

    members: dict[str, Any] = {
        "forward": forward,
        "route": route,
        "__module__": kind.__module__,
        "__qualname__": f"Routed{kind.__qualname__}",
    }
    if hasattr(kind, "generate"):
        members["generate"] = generate
    # transformers finds by a class's name what the tensors of older files are called in it
    return type(kind.__name__, (kind,), members)


def _bound(kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by name."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    given = dict(zip(names, args, strict=False))
    return {k: v for k, v in (given | kwargs).items() if v is not None}


def _size(model: Any, inputs: Mapping[str, Any]) -> int:
    """Return the number of inputs; raise `RequestError` where there is nothing to route."""
    for name in (model.main_input_name, "input_ids", "pixel_values", "inputs_embeds", "input_features"):
        value = inputs.get(name)
        if isinstance(value, torch.Tensor) and value.ndim:
            return value.shape[0]
    what = f"there are no {model.main_input_name} to route: found {', '.join(inputs) or 'no inputs'}"
    raise RequestError(Problem(what, type(model).__name__, "give what the model's processor returns"))


def _forward(model: Any, router: Router, plain: Any, inputs: dict[str, Any], told: Mapping[str, Any]) -> Any:
    size = _size(model, inputs)
    for name, hint in (
        ("labels", "a routed model does not train; compare its logits yourself"),
        ("past_key_values", "use generate, which routes once"),
    ):
        if inputs.get(name) is not None:
            raise RequestError(Problem(f"{name} cannot be given", type(model).__name__, hint))
    routing = router.route(model, inputs, size, **told)
    plan = router.plan(routing)
    moved = plan.order is not None or router.replay is not None
    if moved and "use_cache" in inspect.signature(plain.func).parameters:
        inputs["use_cache"] = False  # a cache would keep the order of the run, and lack the first blocks
    with router.replaying(plan, size):
        out = plan.restored(_run(router, plan, plain, plan.sorted(inputs, size), size), size)
    heads = router.attached.heads
    if isinstance(out, MutableMapping):
        if heads is not None and heads.compete and told["task"] is None and "logits" in out:
            logits, best = best_head(out["logits"], len(router.names), router.settings["heads"])
            out["logits"] = logits
            tasks = [router.names[t] for t in best.tolist()]
            routing = Routing(**{**vars(routing), "tasks": tasks, "lead": best})
        elif heads is not None and heads.compete and "logits" in out:
            out["logits"] = best_head(out["logits"], len(router.names), "max")[0]
        out.routing, out.tasks, out.coefficients = routing, routing.tasks, routing.coefficients  # type: ignore[attr-defined]
        if "logits" in out and (type(model).__name__.endswith("Classification") or hasattr(model, HEAD)):
            width = out["logits"].shape[-1]
            widths = [width] * len(router.names) if heads is None else heads.widths
            out.labels = named(out["logits"], routing.lead.tolist(), widths, router.tasks)  # type: ignore[attr-defined]
    return out


def _run(router: Router, plan: Plan, plain: Any, inputs: dict[str, Any], size: int) -> Any:
    """Run the sorted batch at once, or span by span where a layer cannot be gated sample by sample."""
    gate, attached = router.gate, router.attached
    with gate.over(plan.spans, plan.leads):
        if len(plan.spans) == 1 or not attached.sequential:
            try:
                return plain(**inputs)
            except UnsplitError:
                if len(plan.spans) == 1:
                    raise
                attached.sequential = True  # for the batches to come, too
        results = []
        for span in plan.spans:
            at = slice(span.start, span.stop)
            with gate.within(span), router.window(at):
                results.append(plain(**cut(inputs, at, size)))
        return joined(results)


def _generate(
    model: Any,
    router: Router,
    plain: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    told: Mapping[str, Any],
) -> Any:
    size = _size(model, kwargs)
    plan = router.plan(router.route(model, kwargs, size, **told))

    def run(**inputs: Any) -> Any:
        return plain(*args, **inputs)

    with router.replaying(plan, size, whole=True):  # every block fills its cache
        if not router.attached.sequential or len(plan.spans) == 1:
            out = _run(router, plan, run, plan.sorted(kwargs, size), size)
        else:
            parts = []
            arranged = plan.sorted(kwargs, size)
            with router.gate.over(plan.spans, plan.leads):
                for span in plan.spans:
                    with router.gate.within(span):
                        parts.append(run(**cut(arranged, slice(span.start, span.stop), size)))
            out = _padded(parts, model)
    rows = (out if isinstance(out, torch.Tensor) else out["sequences"]).shape[0]
    return plan.restored(out, rows)


def _padded(parts: list[Any], model: Any) -> Any:
    """Return sequences of several runs as one tensor, filled up with the padding token."""
    found = [part if isinstance(part, torch.Tensor) else part["sequences"] for part in parts]
    longest = max(one.shape[1] for one in found)
    token = model.generation_config.pad_token_id
    token = token if token is not None else model.generation_config.eos_token_id or 0
    token = token[0] if isinstance(token, list) else token
    return torch.cat(
        [torch.nn.functional.pad(one, (0, longest - one.shape[1]), value=token) for one in found]
    )
