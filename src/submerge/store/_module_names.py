"""What transformers calls the parameters of a model whose files have older names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["loaded_names", "module_names"]


def module_names(config: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, str]:
    """Return, by tensor name, the name of the parameter that transformers loads it into, where it differs.

    Some models are saved under the names of an earlier version (`encoder.layer.0.attention.attention.query`
    of a ViT, now `layers.0.attention.q_proj`), and adapters have those of their modules. transformers
    itself knows the way from one to the other; the model is built without values, on the meta device. Empty
    where transformers is not installed, does not know the model, or renames nothing. Tensors that it
    takes apart or packs together are left out.
    """
    kinds = (config or {}).get("architectures") or []
    try:
        import torch
        import transformers

        kind = getattr(transformers, str(kinds[0]))
        with torch.device("meta"):
            model = kind(kind.config_class.from_dict(dict(config or {})))
        return {name: new for name, new in loaded_names(model, names).items() if name != new}
    except Exception:  # an older or newer transformers, a model of custom code: then names are as they are
        return {}


def loaded_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return, by tensor name, the name of the parameter or buffer of a transformers model that it becomes.

    A base's prefix is added or taken away where that is all that differs. Left out are names that the model
    has no place for, and tensors that transformers takes apart or packs together.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    there = model.state_dict()
    steps: list[Any] = list(get_model_conversion_mapping(model))
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    renamings = [step for step in steps if not isinstance(step, WeightConverter)]
    found = {}
    for name in names:
        new, packed = rename_source_key(name, renamings, converters, model.base_model_prefix, there)
        if packed is None and new in there:
            found[name] = new
    return found
