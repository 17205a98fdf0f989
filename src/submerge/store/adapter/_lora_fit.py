"""A LoRA file of a pipeline, and the one model of it that is the base: which parts are of that model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import combinations

from submerge.errors import Problem, RequestError
from submerge.names import match_names
from submerge.store.adapter._adapter import Adapter
from submerge.store.adapter._denoiser_forms import other_form
from submerge.store.adapter._lora_names import component_of
from submerge.store.adapter._open_clip import has_open_clip, open_clip_parts
from submerge.store.adapter._parts import Part

__all__ = ["of_one_model"]

_TEXT_MODEL = "text_model_"  # a level of CLIP's text encoders, which newer versions do without

_CLIP = re.compile(r"text_model[._]encoder[._]layers")
# words that one of the two ways to call the modules of denoisers has, and the other has not
_NAMINGS = {
    "original": re.compile(
        r"(?:^|[._])(?:(?:double|single|joint)_blocks|(?:input|output)_blocks|middle_block)[._]"
    ),
    "diffusers": re.compile(
        r"(?:^|[._])(?:(?:down|up)_blocks|mid_block|single_transformer_blocks)[._]"
        r"|^(?:(?:lora_)?(?:transformer|unet)?[._])?transformer_blocks[._]"
    ),
}

Shapes = Mapping[str, tuple[int, ...]]


def of_one_model(adapter: Adapter, shapes: Shapes, fits: Callable[[Part, tuple[int, ...]], bool]) -> Adapter:
    """Return an adapter of diffusers' or kohya's form with those of its parts that are of the base.

    A file may hold parts for a denoiser and for text encoders, each under a prefix of its own. Those of which
    every part has a place in the base, of the right shape by `fits`, come under the base's names. The others
    are named in `left_out`. Components of which most parts have a place are of this model, too, and come with
    those that have none, for the caller to tell what does not fit; so does the nearest one where no component
    fits. Raises `RequestError` where two components fit one and the same model.
    """
    components: dict[str, dict[str, Part]] = {}
    for name, part in adapter.parts.items():
        component, rest = component_of(name, adapter.form)
        components.setdefault(component, {})[rest] = part
    match = _by_flat_names if adapter.form == "kohya" else _by_names
    matched = {component: match(list(parts), shapes) for component, parts in components.items()}
    fitting = {
        component: {names[name]: part for name, part in components[component].items()}
        for component, names in matched.items()
        if len(set(names.values())) == len(components[component])
        and all(fits(part, shapes[names[name]]) for name, part in components[component].items())
    }
    for component in components.keys() - fitting.keys():
        own = components[component]
        placed = open_clip_parts(own, shapes, fits) or other_form(own, shapes, fits)
        if placed:
            fitting[component] = placed
    for component in components.keys() - fitting.keys():
        _check_naming([f"{component}_{name}" for name in components[component]], shapes, str(adapter.path))
    if not fitting:
        nearest = max(matched, key=lambda component: len(matched[component]))
        names = matched[nearest]
        parts = {names.get(name, name): part for name, part in components[nearest].items()}
        return replace(adapter, parts=parts) if names else adapter
    for component in components.keys() - fitting.keys():
        names, parts = matched[component], components[component]
        in_place = [name for name, target in names.items() if fits(parts[name], shapes[target])]
        if 2 * len(in_place) > len(parts):
            fitting[component] = {names.get(name, name): part for name, part in parts.items()}
    _check_disjoint(fitting, str(adapter.path))
    left_out = tuple(
        f"{len(parts)} parameters of {component} {_why(parts, shapes)}"
        for component, parts in components.items()
        if component not in fitting
    )
    parts = {name: part for named in fitting.values() for name, part in named.items()}
    return replace(adapter, parts=parts, left_out=(*adapter.left_out, *left_out))


def _why(parts: Mapping[str, Part], shapes: Shapes) -> str:
    """Return why the parts of a component are left out."""
    if any(_CLIP.search(name) for name in parts) and has_open_clip(shapes):
        return (
            "are left out: this model has a text encoder in OpenCLIP's form, whose maps are fused "
            "(in_proj_weight); if they are of it, merge into the pipeline's parts as diffusers saves them"
        )
    return "are not of this model, and are left out"


def _check_naming(names: Collection[str], shapes: Shapes, where: str) -> None:
    """Raise `RequestError` where a file and a base call the modules of one model in two ways."""
    for own, other in (("original", "diffusers"), ("diffusers", "original")):
        theirs = next((name for name in shapes if _NAMINGS[other].search(name)), None)
        ours = next((name for name in names if _NAMINGS[own].search(name)), None)
        both = any(_NAMINGS[own].search(name) for name in shapes)
        if theirs and ours and not both:
            forms = {"original": "the original checkpoint", "diffusers": "diffusers"}
            what = f"names modules as {forms[own]} does ({ours}), and the base as {forms[other]} ({theirs})"
            hint = f"give the base as {forms[own]} has it, or convert the file to the names of {forms[other]}"
            raise RequestError(Problem(what, where, hint))


def _check_disjoint(fitting: Mapping[str, Mapping[str, Part]], where: str) -> None:
    """Raise `RequestError` where two components change one tensor of the base."""
    for one, other in combinations(fitting, 2):
        if fitting[one].keys() & fitting[other].keys():
            what = f"its parts of {one} and of {other} both fit the base"
            hint = "keep the tensors of that one in the file which the base is"
            raise RequestError(Problem(what, where, hint))


def _by_names(names: list[str], shapes: Shapes) -> dict[str, str]:
    try:
        return match_names(names, list(shapes)).names
    except RequestError:  # one that the base lacks hinders all: then each by itself
        ends = {name: [target for target in shapes if f".{target}".endswith(f".{name}")] for name in names}
        return {name: targets[0] for name, targets in ends.items() if len(targets) == 1}


def _by_flat_names(names: list[str], shapes: Shapes) -> dict[str, str]:
    """Return the base's names of parameters whose dots are underscores here, where there is only one."""
    flat: dict[str, list[str]] = {}
    for name in shapes:
        path, _, leaf = name.rpartition(".")
        flat.setdefault(f"{path.replace('.', '_')}.{leaf}", []).append(name)
    base_names = {}
    for name in names:
        forms = (name, name.removeprefix(_TEXT_MODEL))
        targets = next((flat[form] for form in forms if form in flat), None)
        if targets is None:  # the base has a prefix of its own
            ending = f"_{name}"  # and is of whole words: single_transformer_blocks are no transformer_blocks
            ends = (target for form, group in flat.items() if form.endswith(ending) for target in group)
            targets = [target for target in ends if target[-len(ending)] == "."]
        if len(targets) == 1:
            base_names[name] = targets[0]
    return base_names
