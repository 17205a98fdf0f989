"""What transformers makes of a file's tensors: how it calls them, and how it packs them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from submerge.names._view import Shape, View

__all__ = ["Loading", "empty_model", "loadable_model", "loaded_names", "loading", "module_names"]


def module_names(config: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, str]:
    """Return, by tensor name, the name of the parameter that transformers loads it into, where it differs.

    Some models are saved under the names of an earlier version (`encoder.layer.0.attention.attention.query`
    of a ViT, now `layers.0.attention.q_proj`), and adapters have those of their modules. transformers
    itself knows the way from one to the other; the model is built without values, on the meta device. Empty
    where transformers is not installed, does not know the model, or renames nothing. Tensors that it
    takes apart or packs together are left out.
    """
    try:
        model = empty_model(config)
        if model is None:
            return {}
        return {name: new for name, new in loaded_names(model, names).items() if name != new}
    except Exception:  # an older or newer transformers: then names are as they are
        return {}


def empty_model(config: Mapping[str, Any] | None) -> Any | None:
    """Return the transformers model that a configuration names, without values, on the meta device.

    None where transformers is not installed or cannot make it: a model of custom code, or of another version.
    """
    kinds = (config or {}).get("architectures")
    if not isinstance(kinds, list) or not kinds:
        return None
    try:
        import torch
        import transformers

        kind = getattr(transformers, str(kinds[0]))
        with _silence(), torch.device("meta"):
            return kind(kind.config_class.from_dict(dict(config or {})))
    except Exception:
        return None


def loadable_model(config: Mapping[str, Any] | None) -> Any | None:
    """Return `empty_model(config)`, for `loaded_names` and `loading` to tell what it makes of a file.

    None, too, where transformers has no steps of loading that could be asked, before its version 5.
    """
    model = empty_model(config)
    if model is None:
        return None
    try:
        import transformers.core_model_loading  # noqa: F401
    except ImportError:
        return None
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress what transformers prints about a configuration: the model is not going to be used."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def loaded_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return, by tensor name, the name of the parameter or buffer of a transformers model that it becomes.

    A base's prefix is added or taken away where that is all that differs. Left out are names that the model
    has no place for, and tensors that transformers takes apart or packs together.
    """
    from transformers.core_model_loading import rename_source_key

    parameters = model.state_dict()
    renamings, converters = _steps(model)
    new_names = {}
    for name in names:
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if pattern is None and new in parameters:  # with a pattern, a converter packs it or takes it apart
            new_names[name] = new
    return new_names


def _steps(model: Any) -> tuple[list[Any], list[Any]]:
    """Return how transformers renames a file's tensors for a model, and how it then converts them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    steps: list[Any] = list(get_model_conversion_mapping(model))
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    return [step for step in steps if not isinstance(step, WeightConverter)], converters


@dataclass(frozen=True)
class Loading:
    """What `from_pretrained` makes of a file.

    `views` are the model's parameters and buffers, made of the file's tensors. `ignored` are those tensors
    that the model has no place for.
    """

    views: Mapping[str, View] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def loading(model: Any, shapes: Mapping[str, Shape]) -> Loading:
    """Return what a transformers model makes of a file whose tensors have these shapes.

    It is what `from_pretrained` does, step for step, on tensors without values. Parameters whose making does
    more than to move elements are left out. Empty where transformers has no such steps (before version 5).
    """
    try:
        from transformers.core_model_loading import dot_natural_key, rename_source_key

        with _silence():
            renamings, converters = _steps(model)
    except ImportError:
        return Loading()
    from submerge.names._placeholder import Placeholder  # a class of torch's, which is there by now

    parameters = model.state_dict()
    by_pattern = {pattern: step for step in converters for pattern in step.source_patterns}
    views: dict[str, View] = {}
    filled: dict[str, Any] = {}
    ignored = set()
    for name in sorted(shapes, key=dot_natural_key):
        stored = View.of(name, shapes[name])
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if new not in parameters and name in parameters:  # it has the names of today already
            new, pattern = name, None
        if new not in parameters:
            ignored.add(name)
        elif pattern is None:
            views.setdefault(new, stored)
        else:
            # a converter gathers the tensors of one parameter, so that each parameter needs one of its own
            if new not in filled:
                filled[new] = deepcopy(by_pattern[pattern])
            filled[new].add_tensor(new, name, pattern, Placeholder(stored))
    for new, converter in filled.items():
        for name, view in _converted(new, converter, model).items():
            if name in parameters:
                views.setdefault(name, view)
    return Loading(views, frozenset(ignored))


def _converted(name: str, converter: Any, model: Any) -> dict[str, View]:
    """Return the parameters that a converter makes of the tensors that it was given; none if it computes."""
    from submerge.names._placeholder import Placeholder

    try:
        outputs = converter.convert(name, model=model, config=model.config)
    except Exception:  # of a dozen types, where tensors do not go together, too
        return {}
    tensors = {new: output[0] if isinstance(output, list) else output for new, output in outputs.items()}
    return {new: tensor.elements for new, tensor in tensors.items() if isinstance(tensor, Placeholder)}
