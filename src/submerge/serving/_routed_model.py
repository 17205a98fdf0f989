"""Transformers classes whose models run under a gate: each call is begun by the model's controller."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from submerge.errors import Problem, RequestError
from submerge.gating import UnsplitError
from submerge.serving._checkpoints import checkpoints_under
from submerge.serving._controller import Call, Controller
from submerge.serving._save_options import saving

__all__ = ["gated_class", "input_count"]


@functools.cache  # a copy, and what was pickled, is of the same class
def gated_class(
    kind: type,
    controller: type[Controller],
    load: Callable[..., Any] | None = None,
    arguments: tuple[str, ...] = (),
) -> type:
    """Return a subclass of a transformers class whose forward and generate are begun by a controller.

    It takes what the class takes, and besides what the controller's requests say; it has the controller's
    members, too. What a call decides for all modules is the model's own state: calls of several threads run
    one after another. `load` is what its `from_pretrained` calls, and `arguments` are what the signature of
    its forward has besides.
    """

    @functools.wraps(kind.forward)  # type: ignore[attr-defined]  # transformers looks at its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain = functools.partial(kind.forward, self)  # type: ignore[attr-defined]
        own: Controller | None = getattr(self, "controller", None)
        if own is None:  # being made
            return plain(*args, **kwargs)
        with own.gated.gate.turn:
            given = dict(kwargs)
            request = own.request(kwargs)
            if own.gated.gate.assignment is not None and len(given) == len(kwargs):
                return plain(*args, **given)  # within a pass of its own, of which it asks nothing
            call = own.begin(self, _by_name(kind, args, kwargs), request)
            with checkpoints_under(self, own.gated, call.assignment):
                return _run(own, plain, call)

    forward.__signature__ = _with_arguments(kind, arguments)  # type: ignore[attr-defined]

    def generate(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Begin once, on the prompt; then generate as transformers does."""
        plain = functools.partial(kind.generate, self)  # type: ignore[attr-defined]
        if inputs is not None:
            kwargs[self.main_input_name] = inputs
        with self.controller.gated.gate.turn:
            given = dict(kwargs)
            request = self.controller.request(kwargs)
            if self.controller.gated.gate.assignment is not None and len(given) == len(kwargs):
                return plain(*args, **given)  # drafts of the model for itself: by what was decided
            call = self.controller.begin_generate(self, kwargs, request)
            return _run(self.controller, lambda **inputs: plain(*args, **inputs), call)

    def from_pretrained(cls: type, /, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder with its gate; the class alone would make a model that answers without it."""
        assert load is not None
        return load(pretrained_model_name_or_path, **kwargs)

    members: dict[str, Any] = {
        "forward": forward,
        "save_pretrained": saving(kind),
        "__reduce_ex__": lambda self, protocol: (_empty, (kind, controller, load, arguments), self.__dict__),
        **{name: _in_turn(member) for name, member in controller.members.items()},
        "__module__": kind.__module__,
        "__qualname__": f"Routed{kind.__qualname__}",
    }
    if hasattr(kind, "generate"):
        members["generate"] = generate
    if load is not None:
        members["from_pretrained"] = classmethod(from_pretrained)
    # transformers finds by a class's name what the tensors of older files are called in it
    return type(kind.__name__, (kind,), members)


def _in_turn(member: Any) -> Any:
    """Return a member of a gated class; a method waits for calls of other threads."""
    if not inspect.isfunction(member):
        return member

    @functools.wraps(member)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.controller.gated.gate.turn:
            return member(self, *args, **kwargs)

    return method


def _with_arguments(kind: Any, arguments: tuple[str, ...]) -> inspect.Signature:
    """Return the signature of a class's forward with more keyword arguments, of which none is required."""
    own = inspect.signature(kind.forward)
    parameters = list(own.parameters.values())
    more = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in arguments]
    position = len(parameters) - bool(parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    more = [parameter for parameter in more if parameter.name not in own.parameters]
    return own.replace(parameters=[*parameters[:position], *more, *parameters[position:]])


def _empty(
    kind: type, controller: type[Controller], load: Callable[..., Any] | None, arguments: tuple[str, ...]
) -> Any:
    """Return a model of a gated class, which no module has by name, for pickle to fill."""
    made: Any = gated_class(kind, controller, load, arguments)
    return made.__new__(made)


def _run(controller: Controller, forward: Any, call: Call) -> Any:
    with call.context:
        if call.assignment is None:
            return call.restore(forward(**call.inputs))
        try:
            out = controller.gated.run(forward, call.inputs, call.assignment, call.join)
        except UnsplitError as error:
            what = "a module of the model is given inputs in which the gate cannot tell rows apart"
            hint = "merge models of this class without a gate: composed ones with modality_tokens: merged"
            raise RequestError(Problem(what, "", hint)) from error
    return call.restore(out)


def _by_name(kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    given = dict(zip(names, args, strict=False))
    return {k: v for k, v in (given | kwargs).items() if v is not None}


def input_count(model: Any, inputs: dict[str, Any]) -> int:
    """Return the number of inputs; raise `RequestError` where there is nothing to route."""
    for name in (model.main_input_name, "input_ids", "pixel_values", "inputs_embeds", "input_features"):
        value = inputs.get(name)
        if isinstance(value, torch.Tensor) and value.ndim:
            return value.shape[0]
    what = f"there are no {model.main_input_name} to route: found {', '.join(inputs) or 'no inputs'}"
    raise RequestError(Problem(what, type(model).__name__, "give what the model's processor returns"))
