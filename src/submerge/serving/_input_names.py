"""The keyword arguments that specialists' inputs have in a composed model, which takes those of all."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from submerge.deferred import required
from submerge.errors import Problem, RequestError

__all__ = ["input_kind", "input_names", "specialist_class"]

LANGUAGE = {
    "attention_mask",
    "cache_position",
    "input_ids",
    "inputs_embeds",
    "labels",
    "logits_to_keep",
    "mm_encoder_outputs",
    "mm_token_type_ids",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "per_layer_inputs",
    "position_ids",
    "return_dict",
    "token_type_ids",
    "use_cache",
}
"""The arguments of a multimodal class that are its language model's, or say how it runs."""
OPTIONS = "vision_"
"""What the arguments begin with that are settings of an encoder, which its configuration holds."""
KINDS = {"video": ("video",), "audio": ("audio", "feature"), "image": ("image", "pixel")}
"""What the names of a kind of inputs hold; the first that fits is the kind."""


def input_names(tasks: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], ...]:
    """Return for each specialist the names of its inputs: from the composed model's to those of its class.

    A class that takes several kinds of inputs, as `LlavaNextVideo…`, gives those of the specialist's `kind`.
    A name that two specialists have is told apart by their modalities: `image_pixel_values`.

    Args:
        tasks: of the gate in `submerge.json`, of which each has `name`, `architectures` and `kind`.

    Raises:
        RequestError: transformers does not have the class of a specialist.

    Examples:
        >>> from submerge.serving import input_names
        >>> llava = {"name": "image", "architectures": ["LlavaForConditionalGeneration"], "kind": "image"}
        >>> qwen = {"name": "audio", "architectures": ["Qwen2AudioForConditionalGeneration"], "kind": "audio"}
        >>> input_names([llava, qwen])[1]
        {'input_features': 'input_features', 'feature_attention_mask': 'feature_attention_mask'}
        >>> input_names([llava, {**llava, "name": "depth"}])[1]
        {'depth_pixel_values': 'pixel_values', 'depth_image_sizes': 'image_sizes'}
    """
    own = [_own_names(specialist_class(task), str(task["kind"])) for task in tasks]
    uses = Counter(name for names in own for name in names)
    return tuple(
        {(f"{task['name']}_{name}" if uses[name] > 1 else name): name for name in names}
        for task, names in zip(tasks, own, strict=True)
    )


def specialist_class(task: Mapping[str, Any]) -> Any:
    """Return the transformers class of a specialist; raise `RequestError` where there is none."""
    transformers = required("transformers", "a composed model needs")
    name = (task.get("architectures") or [""])[0]
    kind = getattr(transformers, name, None) if name else None
    if kind is None:
        what = f"transformers has no architecture {name!r}" if name else "no architecture is named"
        hint = "install the version of transformers that the specialist was made with"
        raise RequestError(Problem(what, f"modality {task['name']}", hint))
    return kind


def _own_names(specialist: Any, kind: str) -> list[str]:
    """Return the names of a class's inputs of one kind, or of all where it has none of that kind."""
    parameters = inspect.signature(specialist.forward).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
    names = [name for name in named if name not in LANGUAGE and not name.startswith(OPTIONS)]
    kinds = [input_kind(name) for name in names]
    return [n for n, k in zip(names, kinds, strict=True) if k in ("", kind) or kind not in kinds]


def input_kind(name: str) -> str:
    """Return the kind of inputs that an argument is of, by its name; empty where it may be any."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "")
