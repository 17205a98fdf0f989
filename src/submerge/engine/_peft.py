"""Adapters of a live PEFT model, merged into a new one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submerge.arguments import checked
from submerge.engine._arguments import recipe_of
from submerge.engine._merge import merge
from submerge.engine.output import MergeReport
from submerge.engine.plan import Settings
from submerge.errors import Problem, RequestError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["merge_adapters"]


@checked
def merge_adapters(
    model: PeftModel,
    adapters: Sequence[str],
    *,
    method: str = "cat",
    name: str = "merged",
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    max_memory: int | None = None,
    **options: Any,
) -> MergeReport:
    """Merge LoRA adapters of a PEFT model by any method, and add the result to it as adapter `name`.

    A drop-in for PEFT's `add_weighted_adapter` that works on the updates B A, with each adapter's own
    rank, alpha and rsLoRA scale, and that takes all methods of `submerge methods`. The model's weights
    are not looked at, and its active adapter stays active. Its adapters have one tokenizer, the model's: none
    is compared. The factors pass through a temporary folder, so that the result is what `submerge merge --as
    adapter` writes, byte for byte.

    Args:
        model: the PEFT model, which gets one adapter more.
        adapters: names of loaded adapters, in the method's order.
        method: a method that merges updates; `cat` is the exact sum.
        name: of the new adapter; it must be free.
        rank: the most that the result may have; all that the merge has by default.
        energy: in (0, 1]; the smallest rank that keeps this share of each squared norm.
        seed: for methods that draw at random.
        threads: workers; one a core by default.
        max_memory: bound on the process' resident memory, in bytes; none by default.
        **options: the method's parameters, as in `merge_state_dicts`: a model-scope option takes one
            value, a sequence with one for each adapter, or a mapping from names.

    Raises:
        RequestError: the request is wrong, or an adapter is no low-rank update; the model is as it was.

    Examples:
        >>> import submerge
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import AutoModelForCausalLM
        >>> base = AutoModelForCausalLM.from_pretrained("base")
        >>> model = get_peft_model(base, LoraConfig(r=4), adapter_name="law")
        >>> model.add_adapter("chess", LoraConfig(r=8))
        >>> report = submerge.merge_adapters(model, ["law", "chess"], weight=[0.5, 0.5], name="both")
        >>> sorted(model.peft_config)
        ['both', 'chess', 'law']
    """
    _check_model(model)
    problems = _refusals(list(model.peft_config), adapters, name) + _other_kinds(model, adapters)
    problems += [_clash(one) for one in sorted({*model.peft_config, name} & _words(model))]
    if problems:
        raise RequestError(problems)
    recipe = recipe_of(list(adapters), False, method, None, None, seed, options)
    recipe["output"] = {
        key: value
        for key, value in (("as", "adapter"), ("rank", rank), ("energy", energy))
        if value is not None
    }
    settings = Settings(threads=threads, max_memory=max_memory or 1 << 62)
    with tempfile.TemporaryDirectory(prefix="submerge-") as place:
        folder = Path(place)
        model.save_pretrained(
            str(folder / "in"), selected_adapters=list(dict.fromkeys(adapters)), save_embedding_layers=False
        )
        for entry, adapter in zip(recipe["models"], adapters, strict=True):
            subfolder = "" if adapter == "default" else adapter  # PEFT saves that one beside the others
            entry["model"] = str(folder / "in" / subfolder)
        try:
            report = merge(recipe, folder / "out", settings=settings)
        except RequestError as error:
            raise _by_name(
                error, {entry["model"]: a for entry, a in zip(recipe["models"], adapters, strict=True)}
            ) from None
        model.load_adapter(str(folder / "out"), adapter_name=name)
    return report


def _check_model(model: Any) -> None:
    """Raise `RequestError` for a model that does not save its adapters one by one, in PEFT's form."""
    from peft import PeftModel  # here: it takes seconds to import

    if not isinstance(model, PeftModel):
        hint = (
            "wrap the model with peft.get_peft_model or PeftModel.from_pretrained, or save the adapters, and "
            "merge their folders with submerge.merge"
        )
        raise RequestError(
            Problem("is no peft.PeftModel, whose adapters are merged", type(model).__name__, hint)
        )


def _words(model: PeftModel) -> set[str]:
    """Return the words of the names under which a model's state has what adapters change."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    return {word for path in paths for word in path.split(".")} | {"weight", "bias", "base_layer"}


def _clash(name: str) -> Problem:
    what = (
        f"an adapter is called {name!r}, a word of the model's own names: PEFT leaves what has that word out"
    )
    return Problem(what, "", "load it under another name (load_adapter(…, adapter_name=…))")


def _by_name(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """Return what is wrong with adapters by their names, and not by the files that they were saved in."""
    problems = []
    for problem in error.problems:
        own = next((folder for folder in names if problem.where.startswith(folder)), None)
        if own is not None:
            hint = "save the adapters, and merge their folders with submerge.merge, and with a base_model"
            problem = Problem(problem.what, f"adapter {names[own]!r}", hint)
        problems.append(problem)
    return RequestError(problems)


def _other_kinds(model: PeftModel, adapters: Sequence[str]) -> list[Problem]:
    """Return the adapters that are no LoRA: what comes out is, and PEFT takes no other kind beside one."""
    loaded = {name: model.peft_config[name].peft_type for name in adapters if name in model.peft_config}
    kinds = {name: str(getattr(kind, "value", kind)) for name, kind in loaded.items()}
    hint = "save the adapters, and merge their folders with submerge.merge"
    return [
        Problem(
            f"the adapter {name!r} is {kind}, beside which PEFT loads no LoRA, which would come out", "", hint
        )
        for name, kind in kinds.items()
        if kind != "LORA"
    ]


def _refusals(loaded: Sequence[str], adapters: Sequence[str], name: str) -> list[Problem]:
    """Return which adapters are not loaded, and whether the new one's name is taken."""
    problems = [
        Problem(f"there is no adapter {adapter!r}", "", f"loaded are {', '.join(loaded)}")
        for adapter in adapters
        if adapter not in loaded
    ]
    if name in loaded:
        problems.append(Problem(f"an adapter {name!r} is there already", "", "choose another name"))
    return problems
